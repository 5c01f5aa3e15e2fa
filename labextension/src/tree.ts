/** What of a tree is shown: auto-saves folded, the filter, the joints of its lines. No screen, no server. */

import type { IRow, ISnapshot, ITree, Stroke } from './api';

/** Auto-saves in a row that are still shown one by one. */
const FOLD = 2;

/** A column of a row as it is drawn: `trunk` is the lane of the line that goes on, where a branch leaves it. */
export interface IJoint {
  kind: Stroke[0];
  lane: number;
  trunk: number;
  up: boolean;
  down: boolean;
}

/** A line of the panel: a snapshot, a folded run of auto-saves, or the gap between two trees. */
export interface ILine {
  key: string;
  joints: IJoint[];
  snapshot: ISnapshot | null;
  /** The ids that are folded here, the oldest first. */
  folded: string[];
  /** The run that this line belongs to and can be folded into again: its key. */
  run: string | null;
}

export interface IView {
  filter: string;
  /** Keys of the runs that the user has opened. */
  opened: ReadonlySet<string>;
}

/** Snapshots by their ids. */
export function byId(tree: ITree): Map<string, ISnapshot> {
  return new Map(tree.snapshots.map(snapshot => [snapshot.id, snapshot]));
}

/** The lines to show, from top to bottom. */
export function lines(tree: ITree, view: IView): ILine[] {
  const snapshots = byId(tree);
  const wanted = words(view.filter);
  if (wanted.length > 0) {
    return matching(tree, snapshots, wanted);
  }
  const drawn = tree.rows.map((row, index) => line(tree.rows, index, snapshots, row));
  return folded(drawn, tree.here, view.opened);
}

function matching(tree: ITree, snapshots: Map<string, ISnapshot>, wanted: string[]): ILine[] {
  const found = tree.rows.filter(row => {
    const snapshot = snapshots.get(row.id ?? '');
    return snapshot !== undefined && matches(snapshot, wanted);
  });
  return found.map(row => {
    const lane = row.strokes[row.strokes.length - 1][1];
    const alone: IJoint = { kind: 'snapshot', lane, trunk: lane, up: false, down: false };
    return { ...plain(row.id ?? ''), joints: [alone], snapshot: snapshots.get(row.id ?? '') ?? null };
  });
}

function words(filter: string): string[] {
  return filter.toLowerCase().split(/\s+/).filter(Boolean);
}

/** Whether every word is in its message, names or programs, or begins its id. */
export function matches(snapshot: ISnapshot, wanted: string[]): boolean {
  const { message, branches, tags, live, program, notebook } = snapshot;
  const text = [message, ...branches, ...tags, ...live, program, notebook ?? ''].join('\n').toLowerCase();
  return wanted.every(word => text.includes(word) || snapshot.id.startsWith(word));
}

function plain(key: string): ILine {
  return { key, joints: [], snapshot: null, folded: [], run: null };
}

function line(rows: IRow[], index: number, snapshots: Map<string, ISnapshot>, row: IRow): ILine {
  const key = row.id ?? `gap-${index}`;
  return { ...plain(key), joints: joints(rows, index), snapshot: snapshots.get(row.id ?? '') ?? null };
}

function joints(rows: IRow[], index: number): IJoint[] {
  return rows[index].strokes.map(([kind, lane], column) => ({
    kind,
    lane,
    trunk: kind === 'fork' ? trunk(rows, index, column) : lane,
    up: joined(rows[index - 1], rows[index], column),
    down: joined(rows[index], rows[index + 1], column)
  }));
}

/** Whether a line goes on from a row to the next one: not out of a corner, and not into what begins a branch there. */
function joined(upper: IRow | undefined, lower: IRow | undefined, column: number): boolean {
  const above = upper?.strokes[column]?.[0] ?? 'blank';
  const below = lower?.strokes[column]?.[0] ?? 'blank';
  const before = lower?.strokes[column - 1]?.[0];
  return above !== 'blank' && above !== 'corner' && below !== 'blank' && before !== 'fork' && before !== 'corner';
}

/** The lane of the line that a branch leaves: that of the next row in this column which is no branch. */
function trunk(rows: IRow[], index: number, column: number): number {
  for (let next = index + 1; next < rows.length; next += 1) {
    const stroke = rows[next].strokes[column];
    if (stroke === undefined) {
      break;
    }
    if (stroke[0] !== 'fork') {
      return stroke[1];
    }
  }
  return rows[index].strokes[column][1];
}

/** Runs of auto-saves as one line each, but for those that were opened. */
function folded(drawn: ILine[], here: string | null, opened: ReadonlySet<string>): ILine[] {
  const shown: ILine[] = [];
  let index = 0;
  while (index < drawn.length) {
    const run = runAt(drawn, index, here);
    shown.push(...(run.length > FOLD ? asRun(run, opened) : [drawn[index]]));
    index += run.length > FOLD ? run.length : 1;
  }
  return shown;
}

function runAt(drawn: ILine[], start: number, here: string | null): ILine[] {
  let end = start;
  while (end < drawn.length && foldable(drawn[end], here) && sameColumn(drawn[start], drawn[end])) {
    end += 1;
  }
  return drawn.slice(start, end);
}

function asRun(run: ILine[], opened: ReadonlySet<string>): ILine[] {
  const key = `run-${run[0].key}`;
  if (opened.has(key)) {
    return run.map(each => ({ ...each, run: key }));
  }
  const ids = run.map(each => each.key);
  const last = run[run.length - 1].joints;
  const both = run[0].joints.map((joint, column) => ({ ...joint, down: last[column].down }));
  both[both.length - 1].kind = 'fold';
  return [{ key, joints: both, snapshot: null, folded: ids, run: key }];
}

/** An auto-save that nobody named, and on which nothing lives or branches off. */
function foldable(each: ILine, here: string | null): boolean {
  const snapshot = each.snapshot;
  return (
    snapshot !== null &&
    snapshot.auto &&
    snapshot.tags.length + snapshot.branches.length + snapshot.live.length === 0 &&
    snapshot.id !== here
  );
}

function sameColumn(first: ILine, other: ILine): boolean {
  const turns = other.joints.some(joint => joint.kind === 'fork' || joint.kind === 'corner');
  return first === other || (!turns && first.joints.length === other.joints.length);
}

/** The snapshot to go back to for "before cell [count]": the nearest ancestor of `here` that was saved before it ran. */
export function beforeCell(snapshots: ReadonlyMap<string, ISnapshot>, here: string | null, count: number): ISnapshot | null {
  let snapshot = here === null ? undefined : snapshots.get(here);
  while (snapshot !== undefined) {
    if (snapshot.count !== null && snapshot.count < count) {
      return snapshot;
    }
    snapshot = snapshots.get(snapshot.parents[0] ?? '');
  }
  return null;
}
