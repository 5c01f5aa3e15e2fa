/** The left panel "Snapshots". */

import { ReactWidget } from '@jupyterlab/apputils';
import type { LabIcon } from '@jupyterlab/ui-components';
import type { CommandRegistry } from '@lumino/commands';
import React from 'react';
import type { Actions } from './actions';
import { ApiError } from './api';
import { Details } from './details';
import * as icons from './icons';
import type { Scope, Snapshots } from './model';
import { ILine, lines } from './tree';
import { TreeView } from './treeview';

/** How often ages are written anew. */
const MINUTE_MS = 60000;

/** What the keys do in the tree, beside those that walk it. */
const KEYS: Record<string, string> = {
  Enter: 'go-back',
  f: 'fork',
  d: 'compare',
  t: 'tag',
  F2: 'rename',
  Delete: 'delete'
};

export interface IPanelParts {
  model: Snapshots;
  actions: Actions;
  commands: CommandRegistry;
}

export class SnapshotsPanel extends ReactWidget {
  private reveal = 0;

  constructor(private readonly parts: IPanelParts) {
    super();
    this.id = 'ijfs-snapshots';
    this.title.icon = icons.treeIcon;
    this.title.caption = 'Snapshots';
    this.addClass('ijfs-Panel');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', 'Snapshots');
    parts.model.changed.connect(() => this.update());
  }

  /** Put the keyboard into the tree. */
  protected onActivateRequest(): void {
    this.reveal += 1;
    this.update();
    requestAnimationFrame(() => {
      const { node } = this;
      (node.querySelector<HTMLElement>('.ijfs-Tree') ?? node.querySelector<HTMLElement>('.ijfs-Button'))?.focus();
    });
  }

  protected render(): JSX.Element {
    return <Body {...this.parts} reveal={this.reveal} />;
  }
}

function Body({ model, actions, commands, reveal }: IPanelParts & { reveal: number }): JSX.Element {
  const [filter, setFilter] = React.useState('');
  const [opened, setOpened] = React.useState<ReadonlySet<string>>(new Set());
  const [revealed, setRevealed] = React.useState(0);
  const now = useNow();
  const { tree, here, selection, selected } = model;
  const shown = React.useMemo(
    () => (tree === null ? [] : lines({ ...tree, here }, { filter, opened })),
    [tree, here, filter, opened]
  );
  const run = (command: string): void => void commands.execute(`ijfs:${command}`);
  const isEnabled = (command: string): boolean => commands.isEnabled(`ijfs:${command}`);
  const goLive = (): void => {
    model.select(here);
    setRevealed(revealed + 1);
  };
  const onKey = (key: string): boolean => {
    const command = KEYS[key.length === 1 ? key.toLowerCase() : key];
    if (command !== undefined) {
      run(command);
    } else if (key.toLowerCase() === 'h') {
      goLive();
    }
    return command !== undefined || key.toLowerCase() === 'h';
  };
  const onFold = React.useCallback((line: ILine, open: boolean) => {
    setOpened(before => toggled(before, line.run, open));
    model.select(open ? line.folded[0] : line.run);
  }, []);

  return (
    <>
      <Tools model={model} run={run} isEnabled={isEnabled} goLive={goLive} />
      <Filter filter={filter} scope={model.scope} onFilter={setFilter} onScope={scope => model.setScope(scope)} />
      <Notice model={model} onChangeKernel={() => void commands.execute('notebook:change-kernel')} />
      {tree !== null && shown.length === 0 ? (
        <Empty filter={filter} isReady={model.ready} onSave={() => run('save')} />
      ) : (
        <TreeView
          lines={shown}
          selected={selected}
          here={here}
          now={now}
          onSelect={line => model.select(line.key)}
          onFold={onFold}
          onKey={onKey}
          onMenu={snapshot => model.select(snapshot.id)}
          reveal={reveal + revealed}
        />
      )}
      {selection !== null && (
        <Details
          snapshot={selection}
          isEnabled={isEnabled}
          run={run}
          onUntag={tag => void actions.attempt(() => actions.untag(tag))}
        />
      )}
    </>
  );
}

function toggled(before: ReadonlySet<string>, run: string | null, open: boolean): ReadonlySet<string> {
  const after = new Set(before);
  if (run !== null) {
    after[open ? 'add' : 'delete'](run);
  }
  return after;
}

function useNow(): number {
  const [now, setNow] = React.useState(Date.now());
  React.useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), MINUTE_MS);
    return () => clearInterval(timer);
  }, []);
  return now;
}

interface IToolsProps {
  model: Snapshots;
  run: (command: string) => void;
  isEnabled: (command: string) => boolean;
  goLive: () => void;
}

function Tools({ model, run, isEnabled, goLive }: IToolsProps): JSX.Element {
  return (
    <div className="ijfs-Tools" role="toolbar" aria-label="Snapshots">
      <button className="ijfs-Button ijfs-mod-main" disabled={!isEnabled('save')} title="Save memory, files and the notebook (Ctrl+Alt+S)" onClick={() => run('save')}>
        <icons.saveIcon.react tag="span" />
        Save
      </button>
      <button className="ijfs-Button" disabled={!isEnabled('undo-cell')} title="Undo the last cell (Ctrl+Alt+Z)" onClick={() => run('undo-cell')}>
        <icons.undoIcon.react tag="span" />
        Undo cell
      </button>
      <span className="ijfs-Space" />
      <Tool icon={icons.forkIcon} label="Fork the running notebook into a new tab" disabled={!isEnabled('fork-running')} onClick={() => run('fork-running')} />
      <Tool icon={icons.hereIcon} label="Show where the notebook is (H)" disabled={model.here === null} onClick={goLive} />
    </div>
  );
}

function Tool(props: { icon: LabIcon; label: string; disabled?: boolean; onClick: () => void }): JSX.Element {
  const { icon, label, disabled, onClick } = props;
  return (
    <button className="ijfs-Tool" aria-label={label} title={label} disabled={disabled} onClick={onClick}>
      <icon.react tag="span" />
    </button>
  );
}

interface IFilterProps {
  filter: string;
  scope: Scope;
  onFilter: (filter: string) => void;
  onScope: (scope: Scope) => void;
}

function Filter({ filter, scope, onFilter, onScope }: IFilterProps): JSX.Element {
  return (
    <div className="ijfs-Filter">
      <input
        type="search"
        placeholder="Filter"
        aria-label="Filter the snapshots"
        value={filter}
        onChange={event => onFilter(event.target.value)}
        onKeyDown={event => event.key === 'Escape' && onFilter('')}
      />
      <select
        aria-label="Whose snapshots"
        value={scope}
        onChange={event => onScope(event.target.value as Scope)}
      >
        <option value="notebook">This notebook</option>
        <option value="all">All</option>
      </select>
    </div>
  );
}

/** Why something cannot be done, above a tree that can be read all the same. */
function Notice({ model, onChangeKernel }: { model: Snapshots; onChangeKernel: () => void }): JSX.Element | null {
  const { error, status } = model;
  if (error !== null) {
    return <ErrorNotice error={error} onAgain={() => void model.refresh()} />;
  }
  if (status !== null && !status.ijfs) {
    return (
      <div className="ijfs-Notice" role="status">
        <p>{prose(status.reason)}</p>
        <p className="ijfs-Hint">{prose(status.hint)}</p>
        <button className="ijfs-Button" onClick={onChangeKernel}>
          Change kernel…
        </button>
      </div>
    );
  }
  const trouble = status?.damage || status?.save_error;
  return trouble ? (
    <div className="ijfs-Notice ijfs-mod-error" role="alert">
      <p>{prose(trouble)}</p>
    </div>
  ) : null;
}

function ErrorNotice({ error, onAgain }: { error: ApiError; onAgain: () => void }): JSX.Element {
  return (
    <div className="ijfs-Notice ijfs-mod-error" role="alert">
      <p>{prose(error.message)}</p>
      {error.hint && <p className="ijfs-Hint">{prose(error.hint)}</p>}
      <button className="ijfs-Button" onClick={onAgain}>
        Try again
      </button>
    </div>
  );
}

function Empty({ filter, isReady, onSave }: { filter: string; isReady: boolean; onSave: () => void }): JSX.Element {
  if (filter) {
    return <div className="ijfs-Empty">Nothing has “{filter}” in its message, names or program.</div>;
  }
  return (
    <div className="ijfs-Empty">
      <icons.treeIcon.react tag="span" className="ijfs-Empty-mark" />
      <p>No snapshots yet.</p>
      <p className="ijfs-Hint">
        A snapshot keeps all of the notebook: its memory, the files it wrote, and the document. You can go back to it, and branch
        off from it.
      </p>
      {isReady && (
        <button className="ijfs-Button ijfs-mod-main" onClick={onSave}>
          <icons.saveIcon.react tag="span" />
          Save the first
        </button>
      )}
    </div>
  );
}

/** A whole sentence, and in it as code what stands in backticks. */
function prose(text: string): React.ReactNode[] {
  const full = text.charAt(0).toUpperCase() + text.slice(1);
  const ended = /[.!?…]$/.test(full) ? full : `${full}.`;
  return ended.split('`').map((part, index) => (index % 2 === 1 ? <code key={index}>{part}</code> : part));
}
