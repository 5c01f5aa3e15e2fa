/** The tree as a list of rows, of which only those in sight exist; its keys, as a screen reader expects of a tree. */

import React from 'react';
import type { ISnapshot } from './api';
import { COLUMNS_PX, GAP_PX, ROW_PX, Row } from './row';
import type { ILine } from './tree';

/** Rows beyond the edges that exist all the same, so that a fast scroll shows no holes. */
const BEYOND = 12;
/** Scrolled less than this, the same rows are still in sight or just beyond it. */
const STEP_PX = 4 * ROW_PX;

interface ITreeViewProps {
  lines: ILine[];
  selected: string | null;
  here: string | null;
  now: number;
  onSelect: (line: ILine) => void;
  onFold: (line: ILine, open: boolean) => void;
  onKey: (key: string) => boolean;
  onMenu: (snapshot: ISnapshot) => void;
  /** Scroll to the selected row when this changes. */
  reveal: number;
}

/** Where each line begins: gaps are lower than rows. */
function tops(lines: ILine[]): number[] {
  const found = [0];
  for (const line of lines) {
    found.push(found[found.length - 1] + (line.joints.length > 0 ? ROW_PX : GAP_PX));
  }
  return found;
}

/** The last line that begins at or above a height. */
function lineAt(starts: number[], height: number): number {
  let low = 0;
  let high = starts.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    [low, high] = starts[middle] <= height ? [middle, high] : [low, middle - 1];
  }
  return low;
}

export function TreeView(props: ITreeViewProps): JSX.Element {
  const { lines, selected, here, now, onSelect, onFold, onKey, onMenu, reveal } = props;
  const box = React.useRef<HTMLDivElement>(null);
  const [sight, setSight] = React.useState({ top: 0, height: 600 });
  const starts = React.useMemo(() => tops(lines), [lines]);
  const columns = React.useMemo(() => Math.max(1, ...lines.map(line => line.joints.length)), [lines]);
  const index = lines.findIndex(line => line.key === selected);

  const look = React.useCallback(() => {
    const node = box.current;
    if (node !== null) {
      const [top, height] = [Math.floor(node.scrollTop / STEP_PX) * STEP_PX, node.clientHeight];
      setSight(before => (before.top === top && before.height === height ? before : { top, height }));
    }
  }, []);
  React.useLayoutEffect(() => {
    look();
    const observer = new ResizeObserver(look);
    observer.observe(box.current!);
    return () => observer.disconnect();
  }, [look]);
  const goal = index >= 0 ? index : lines.findIndex(line => line.key === here);
  React.useLayoutEffect(() => reach(box.current, starts[goal]), [goal, reveal]);

  const first = Math.max(0, lineAt(starts, sight.top) - BEYOND);
  const last = Math.min(lines.length, lineAt(starts, sight.top + sight.height) + BEYOND + 1);
  const onKeyDown = (event: React.KeyboardEvent): void => {
    const target = steps(event.key, lines, index, Math.max(1, Math.floor(sight.height / ROW_PX) - 1));
    const line = lines[index];
    if (target !== null) {
      onSelect(lines[target]);
    } else if (line?.run && (event.key === 'ArrowRight' || event.key === 'ArrowLeft' || event.key === 'Enter')) {
      const open = line.folded.length > 0;
      if (event.key === 'Enter' && !open) {
        onKey('Enter');
      } else if (open !== (event.key === 'ArrowLeft')) {
        onFold(line, open);
      }
    } else if (event.ctrlKey || event.altKey || event.metaKey || !onKey(event.key)) {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  };

  return (
    <div
      className="ijfs-Tree"
      ref={box}
      role="tree"
      aria-label="Snapshots"
      aria-activedescendant={index >= 0 ? rowId(lines[index]) : undefined}
      tabIndex={0}
      onScroll={look}
      onKeyDown={onKeyDown}
      onFocus={event => {
        if (event.target === box.current && index < 0) {
          const start = lines.find(line => line.key === here) ?? lines[0];
          if (start !== undefined) {
            onSelect(start);
          }
        }
      }}
    >
      <div className="ijfs-Tree-all" role="presentation" style={{ height: starts[lines.length] }}>
        {lines.slice(first, last).map((line, offset) => (
          <Row
            key={line.key}
            id={rowId(line)}
            line={line}
            top={starts[first + offset]}
            column={Math.min(12, COLUMNS_PX / columns)}
            place={first + offset + 1}
            of={lines.length}
            isSelected={line.key === selected}
            isHere={line.key === here}
            now={now}
            onSelect={onSelect}
            onFold={onFold}
            onMenu={onMenu}
          />
        ))}
      </div>
    </div>
  );
}

function rowId(line: ILine): string {
  return `ijfs-row-${line.key}`;
}

/** Where a key leads from a line: a line with something on it, or null for a key that is no step. */
function steps(key: string, lines: ILine[], from: number, page: number): number | null {
  const step: Record<string, number> = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
  if (key === 'Home' || key === 'End') {
    return lines.length === 0 ? null : key === 'Home' ? 0 : lines.length - 1;
  }
  if (!(key in step) || lines.length === 0) {
    return null;
  }
  const to = Math.min(lines.length - 1, Math.max(0, from + step[key]));
  const gap = lines[to].joints.length === 0;
  return gap ? Math.min(lines.length - 1, Math.max(0, to + Math.sign(step[key]))) : to;
}

function reach(node: HTMLDivElement | null, top: number | undefined): void {
  if (node === null || top === undefined) {
    return;
  }
  if (top < node.scrollTop) {
    node.scrollTop = top;
  } else if (top + ROW_PX > node.scrollTop + node.clientHeight) {
    node.scrollTop = top + ROW_PX - node.clientHeight;
  }
}
