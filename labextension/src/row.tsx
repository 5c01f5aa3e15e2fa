/** One row of the tree: its lines, and the two lines of text about a snapshot. */

import React from 'react';
import type { ISnapshot } from './api';
import type { IJoint, ILine } from './tree';
import * as words from './words';

export const ROW_PX = 40;
export const GAP_PX = 10;
/** All columns of lines together are never wider: deep trees get narrower ones. */
export const COLUMNS_PX = 84;
const LANES = 6;

interface IRowProps {
  id: string;
  line: ILine;
  top: number;
  column: number;
  place: number;
  of: number;
  isSelected: boolean;
  isHere: boolean;
  now: number;
  onSelect: (line: ILine) => void;
  onFold: (line: ILine, open: boolean) => void;
  onMenu: (snapshot: ISnapshot) => void;
}

export const Row = React.memo(function Row(props: IRowProps): JSX.Element {
  const { id, line, top, column, place, of, isSelected, isHere, now, onSelect, onFold, onMenu } = props;
  if (line.joints.length === 0) {
    return <div className="ijfs-Gap" role="presentation" style={{ top, height: GAP_PX }} />;
  }
  const isFold = line.folded.length > 0;
  const classes = ['ijfs-Row', isSelected && 'ijfs-mod-selected', isHere && 'ijfs-mod-here', isFold && 'ijfs-mod-fold'];
  return (
    <div
      id={id}
      className={classes.filter(Boolean).join(' ')}
      role="treeitem"
      aria-level={line.joints.length}
      aria-setsize={of}
      aria-posinset={place}
      aria-selected={isSelected}
      aria-expanded={line.run === null ? undefined : !isFold}
      aria-label={line.snapshot === null ? `${line.folded.length} auto-saves` : spoken(line.snapshot, isHere, now)}
      data-snapshot={line.snapshot?.id}
      style={{ top, height: ROW_PX }}
      onMouseDown={() => onSelect(line)}
      onClick={() => isFold && onFold(line, true)}
      onContextMenu={() => line.snapshot !== null && onMenu(line.snapshot)}
    >
      <Joints joints={line.joints} column={column} isHere={isHere} />
      {line.snapshot === null ? <Folded line={line} /> : <Text snapshot={line.snapshot} isHere={isHere} now={now} />}
    </div>
  );
});

function Folded({ line }: { line: ILine }): JSX.Element {
  return <div className="ijfs-Row-folded">{line.folded.length} auto-saves</div>;
}

function Text({ snapshot, isHere, now }: { snapshot: ISnapshot; isHere: boolean; now: number }): JSX.Element {
  const { message, added, count, live, branches, tags } = snapshot;
  const others = live.filter(program => !(isHere && program === snapshot.program));
  const unsaid = branches.filter(branch => !live.includes(branch));
  const facts = [words.short(snapshot.id), count === null ? '' : `[${count}]`, added === null ? '' : `+${words.bytes(added)}`];
  return (
    <div className="ijfs-Row-text">
      <div className="ijfs-Row-first">
        <span className={message ? 'ijfs-Row-message' : 'ijfs-Row-message ijfs-mod-none'} title={message}>
          {message || (snapshot.auto ? 'auto-save' : 'no message')}
        </span>
        <time className="ijfs-Row-age" dateTime={snapshot.created} title={new Date(snapshot.created).toLocaleString()}>
          {words.age(snapshot.created, now)}
        </time>
      </div>
      <div className="ijfs-Row-second">
        {isHere && <span className="ijfs-Chip ijfs-mod-here">here</span>}
        {others.map(program => (
          <span key={program} className="ijfs-Chip ijfs-mod-live" title={`${program} is live on this snapshot`}>
            ▶ {program}
          </span>
        ))}
        {tags.map(tag => (
          <span key={tag} className="ijfs-Chip ijfs-mod-tag" title={`tag ${tag}`}>
            {tag}
          </span>
        ))}
        {unsaid.map(branch => (
          <span key={branch} className="ijfs-Chip ijfs-mod-branch" title={`branch ${branch}`}>
            {branch}
          </span>
        ))}
        <span className="ijfs-Row-facts">{facts.filter(Boolean).join(' · ')}</span>
      </div>
    </div>
  );
}

function Joints({ joints, column, isHere }: { joints: IJoint[]; column: number; isHere: boolean }): JSX.Element {
  const middle = ROW_PX / 2;
  return (
    <svg className="ijfs-Joints" width={joints.length * column + 6} height={ROW_PX} aria-hidden="true">
      {joints.map((joint, index) => (
        <Column key={index} joint={joint} x={index * column + 9} column={column} middle={middle} isHere={isHere} />
      ))}
    </svg>
  );
}

interface IColumnProps {
  joint: IJoint;
  x: number;
  column: number;
  middle: number;
  isHere: boolean;
}

function Column({ joint, x, column, middle, isHere }: IColumnProps): JSX.Element | null {
  const { kind, lane, trunk, up, down } = joint;
  const turn = `M${x} 0C${x} ${middle} ${x} ${middle} ${x + column} ${middle}`;
  switch (kind) {
    case 'pipe':
      return <path className={laneClass(lane)} d={`M${x} 0V${ROW_PX}`} />;
    case 'fork':
      return (
        <>
          <path className={laneClass(lane)} d={turn} />
          <path className={laneClass(trunk)} d={`M${x} 0V${ROW_PX}`} />
        </>
      );
    case 'corner':
      return <path className={laneClass(lane)} d={turn} />;
    case 'snapshot':
    case 'fold':
      return (
        <g className={laneClass(lane)}>
          {up && <path className={kind === 'fold' ? 'ijfs-Dots' : ''} d={`M${x} 0V${middle}`} />}
          {down && <path className={kind === 'fold' ? 'ijfs-Dots' : ''} d={`M${x} ${middle}V${ROW_PX}`} />}
          {kind === 'snapshot' && (
            <circle className={isHere ? 'ijfs-mod-here' : ''} cx={x} cy={middle} r={5} />
          )}
        </g>
      );
    default:
      return null;
  }
}

function laneClass(lane: number): string {
  return `ijfs-lane${lane % LANES}`;
}

function spoken(snapshot: ISnapshot, isHere: boolean, now: number): string {
  const { message, auto, created, count, branches, tags, live } = snapshot;
  return [
    message || (auto ? 'auto-save' : `snapshot ${words.short(snapshot.id)}`),
    isHere ? 'the notebook is here' : '',
    `saved ${words.ago(created, now)}`,
    count === null ? '' : `after cell ${count}`,
    branches.length > 0 ? `branch ${branches.join(', ')}` : '',
    tags.length > 0 ? `tag ${tags.join(', ')}` : '',
    live.length > 0 ? `live: ${live.join(', ')}` : ''
  ]
    .filter(Boolean)
    .join('; ');
}
