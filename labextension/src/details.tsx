/** The selected snapshot: what it is, and what can be done with it. */

import type { LabIcon } from '@jupyterlab/ui-components';
import React from 'react';
import type { ISnapshot } from './api';
import * as icons from './icons';
import * as words from './words';

interface IDetailsProps {
  snapshot: ISnapshot;
  isEnabled: (command: string) => boolean;
  run: (command: string) => void;
  onUntag: (tag: string) => void;
}

const BUTTONS: [string, string, LabIcon, string][] = [
  ['fork', 'Fork', icons.forkIcon, 'Open a copy of it in a new tab (F)'],
  ['compare', 'Compare', icons.compareIcon, 'What changed between it and now (D)'],
  ['rename', 'Rename', icons.renameIcon, 'Name its branch (F2)'],
  ['tag', 'Tag', icons.tagIcon, 'Name it, and keep it from being removed (T)'],
  ['adopt', 'Adopt files', icons.adoptIcon, 'Bring the files that the program wrote into your folder'],
  ['delete', 'Delete', icons.deleteIcon, 'Remove it, after saying what comes back (Delete)']
];

export function Details(props: IDetailsProps): JSX.Element {
  const { snapshot, isEnabled, run, onUntag } = props;
  return (
    <section className="ijfs-Details" aria-label="The selected snapshot">
      <h3 className="ijfs-Details-title">{snapshot.message || (snapshot.auto ? 'Auto-save' : 'No message')}</h3>
      <Facts snapshot={snapshot} onUntag={onUntag} />
      <button className="ijfs-Button ijfs-mod-main" disabled={!isEnabled('go-back')} onClick={() => run('go-back')}>
        <icons.backIcon.react tag="span" />
        Go back here
      </button>
      <div className="ijfs-Buttons">
        {BUTTONS.map(([command, label, icon, title]) => (
          <button
            key={command}
            className="ijfs-Button"
            title={title}
            disabled={!isEnabled(command)}
            onClick={() => run(command)}
          >
            <icon.react tag="span" />
            {label}
          </button>
        ))}
      </div>
    </section>
  );
}

function Facts({ snapshot, onUntag }: { snapshot: ISnapshot; onUntag: (tag: string) => void }): JSX.Element {
  const { id, created, size, added, frozen_s, notebook, program, tags } = snapshot;
  const sizes = [
    size === null ? '' : words.bytes(size),
    added === null ? '' : `${words.bytes(added)} its own`,
    frozen_s === null ? '' : `frozen ${words.duration(frozen_s)}`
  ];
  return (
    <dl className="ijfs-Facts">
      <Fact name="Saved" text={new Date(created).toLocaleString()} />
      <Fact name="Id" text={id.slice(0, 12)} title={id} />
      <Fact name="Size" text={sizes.filter(Boolean).join(', ')} />
      <Fact name="Of" text={notebook ?? program} />
      {tags.length > 0 && (
        <>
          <dt>Tags</dt>
          <dd>
            {tags.map(tag => (
              <button key={tag} className="ijfs-Chip ijfs-mod-tag" title={`Remove the tag ${tag}`} onClick={() => onUntag(tag)}>
                {tag} ×
              </button>
            ))}
          </dd>
        </>
      )}
    </dl>
  );
}

function Fact({ name, text, title }: { name: string; text: string; title?: string }): JSX.Element | null {
  if (!text) {
    return null;
  }
  return (
    <>
      <dt>{name}</dt>
      <dd title={title ?? text}>{text}</dd>
    </>
  );
}
