/** The status bar's item: `ijfs ● 3fa91c20 · 12 MB · 80 ms`, of the notebook in front. */

import { ReactWidget } from '@jupyterlab/apputils';
import React from 'react';
import type { Status } from './api';
import { treeIcon } from './icons';
import type { Snapshots } from './model';
import * as words from './words';

export class StatusItem extends ReactWidget {
  constructor(
    private readonly model: Snapshots,
    private readonly open: () => void
  ) {
    super();
    this.addClass('ijfs-Status');
    model.changed.connect(() => this.update());
  }

  protected render(): JSX.Element | null {
    const { status } = this.model;
    if (status === null || !status.ijfs) {
      return null;
    }
    const said = state(status);
    return (
      <button className="ijfs-Status-button" title={`${said.title}. Click for the tree`} onClick={this.open}>
        <treeIcon.react tag="span" />
        ijfs <span className={`ijfs-Status-dot ijfs-mod-${said.mood}`}>●</span> {said.text}
      </button>
    );
  }
}

/** What is to be said of a kernel: its last save, or what goes on. */
function state(status: Extract<Status, { ijfs: true }>): { text: string; title: string; mood: string } {
  const { snapshot, added, frozen_s: frozen, saving, save_error: failure, damage } = status;
  if (failure || damage) {
    return { text: 'not saved', title: failure || damage, mood: 'bad' };
  }
  if (saving > 0) {
    return { text: 'saving…', title: 'A snapshot is being stored', mood: 'busy' };
  }
  if (snapshot === null) {
    return { text: 'not saved yet', title: `${status.instance} has no snapshot`, mood: 'none' };
  }
  const size = added === null ? '' : words.bytes(added);
  const time = frozen === null ? '' : words.duration(frozen);
  const text = [words.short(snapshot), size, time].filter(Boolean).join(' · ');
  const title = `${status.instance} stands on ${status.message || words.short(snapshot)}: ${size} were stored, frozen for ${time}`;
  return { text, title, mood: 'good' };
}
