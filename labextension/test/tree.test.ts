/** Which lines the panel shows of a tree. Run by tests/jupyter/test_labextension.py. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ISnapshot, ITree, Stroke } from '../src/api.ts';
import { beforeCell, byId, lines } from '../src/tree.ts';

const NOTHING: ReadonlySet<string> = new Set();

function snapshot(id: string, parent: string | null, more: Partial<ISnapshot> = {}): ISnapshot {
  return {
    id,
    parents: parent === null ? [] : [parent],
    created: '2026-11-30T12:00:00+00:00',
    message: '',
    branches: [],
    tags: [],
    program: 'study',
    notebook: 'study.ipynb',
    auto: false,
    kernel: true,
    size: null,
    added: null,
    frozen_s: null,
    count: null,
    live: [],
    ...more
  };
}

function tree(rows: [string | null, ...Stroke[]][], snapshots: ISnapshot[], here: string | null = null): ITree {
  return {
    repository: '/r',
    stored: null,
    logical: null,
    instance: null,
    here,
    snapshots,
    rows: rows.map(([id, ...strokes]) => (id === null ? { strokes } : { id, strokes })),
    live: []
  };
}

function chain(count: number, more: Partial<ISnapshot>): ISnapshot[] {
  return Array.from({ length: count }, (_, index) => snapshot(`s${index}`, index === 0 ? null : `s${index - 1}`, more));
}

function column(snapshots: ISnapshot[], here: string | null = null): ITree {
  return tree(snapshots.map(({ id }) => [id, ['snapshot', 0]]), snapshots, here);
}

function keys(of: ITree, opened: ReadonlySet<string> = NOTHING, filter = ''): string[] {
  return lines(of, { filter, opened }).map(line => line.key);
}

test('a run of auto-saves is one line, which says how many they are', () => {
  const [line] = lines(column(chain(5, { auto: true })), { filter: '', opened: NOTHING });
  assert.equal(line.key, 'run-s0');
  assert.deepEqual(line.folded, ['s0', 's1', 's2', 's3', 's4']);
  assert.equal(line.joints[0].kind, 'fold');
});

test('two auto-saves are shown one by one', () => {
  assert.deepEqual(keys(column(chain(2, { auto: true }))), ['s0', 's1']);
});

test('an opened run is shown line by line, and each knows its run', () => {
  const shown = lines(column(chain(4, { auto: true })), { filter: '', opened: new Set(['run-s0']) });
  assert.deepEqual(shown.map(line => [line.key, line.run]), ['s0', 's1', 's2', 's3'].map(key => [key, 'run-s0']));
});

test('what a person asked for, named, or lives on is never folded', () => {
  for (const more of [{ auto: false }, { tags: ['v1'] }, { branches: ['main'] }, { live: ['study'] }]) {
    const saves = chain(7, { auto: true });
    saves[3] = { ...saves[3], ...more };
    assert.deepEqual(keys(column(saves)), ['run-s0', 's3', 'run-s4']);
  }
});

test('where the notebook stands is never folded', () => {
  assert.deepEqual(keys(column(chain(7, { auto: true }), 's3')), ['run-s0', 's3', 'run-s4']);
});

test('a run ends where a branch leaves', () => {
  const saves = chain(8, { auto: true });
  const branch = snapshot('b', 's3', { auto: true });
  const rows: [string, ...Stroke[]][] = saves.map(({ id }) => [id, ['snapshot', 0]]);
  rows.splice(4, 0, ['b', ['fork', 1], ['snapshot', 1]]);
  assert.deepEqual(keys(tree(rows, [...saves, branch])), ['run-s0', 'b', 'run-s4']);
});

test('a filter finds words of messages, names and programs, and the beginning of an id', () => {
  const saves = [
    snapshot('abc1', null, { message: 'Data loaded' }),
    snapshot('abd2', 'abc1', { tags: ['clean'] }),
    snapshot('e3', 'abd2', { program: 'ocean', auto: true })
  ];
  for (const [filter, found] of [
    ['data', ['abc1']],
    ['LOADED data', ['abc1']],
    ['clean', ['abd2']],
    ['ocean', ['e3']],
    ['ab', ['abc1', 'abd2']],
    ['bd', []]
  ] as [string, string[]][]) {
    assert.deepEqual(keys(column(saves), NOTHING, filter), found, filter);
  }
});

test('lines join what is one above the other, and a branch begins beside its trunk', () => {
  const saves = [snapshot('a', null), snapshot('b', 'a'), snapshot('c', 'b'), snapshot('d', 'a')];
  const shown = lines(
    tree(
      [
        ['a', ['snapshot', 0]],
        ['b', ['fork', 1], ['snapshot', 1]],
        ['c', ['pipe', 0], ['snapshot', 1]],
        ['d', ['snapshot', 0]]
      ],
      saves
    ),
    { filter: '', opened: NOTHING }
  );
  const ends = shown.map(line => line.joints.map(({ up, down }) => [up, down]));
  assert.deepEqual(ends, [[[false, true]], [[true, true], [false, true]], [[true, true], [true, false]], [[true, false]]]);
  assert.equal(shown[1].joints[0].trunk, 0);
});

test('nothing goes on below a corner, nor from one branch into the next', () => {
  const saves = [snapshot('a', null), snapshot('b', 'a'), snapshot('c', 'a')];
  const rows: [string, ...Stroke[]][] = [
    ['a', ['snapshot', 0]],
    ['b', ['fork', 1], ['snapshot', 1]],
    ['c', ['corner', 2], ['snapshot', 2]]
  ];
  const shown = lines(tree(rows, saves), { filter: '', opened: NOTHING });
  assert.deepEqual(shown.map(line => line.joints[line.joints.length - 1]).map(({ up, down }) => [up, down]), [
    [false, true],
    [false, false],
    [false, false]
  ]);
});

test('an empty row between trees is a gap', () => {
  const saves = [snapshot('a', null), snapshot('b', null)];
  const shown = lines(tree([['a', ['snapshot', 0]], [null], ['b', ['snapshot', 1]]], saves), { filter: '', opened: NOTHING });
  assert.deepEqual(shown.map(line => line.joints.length), [1, 0, 1]);
  assert.equal(shown[0].joints[0].down, false);
});

test('before a cell: the nearest ancestor that was saved before it ran', () => {
  const saves = [
    snapshot('a', null, { count: 2 }),
    snapshot('b', 'a', { count: null }),
    snapshot('c', 'b', { count: 5 }),
    snapshot('other', 'a', { count: 4 })
  ];
  const known = byId(column(saves));
  assert.equal(beforeCell(known, 'c', 7)?.id, 'c');
  assert.equal(beforeCell(known, 'c', 6)?.id, 'c');
  assert.equal(beforeCell(known, 'c', 5)?.id, 'a');
  assert.equal(beforeCell(known, 'c', 2), null);
  assert.equal(beforeCell(known, null, 5), null);
});
