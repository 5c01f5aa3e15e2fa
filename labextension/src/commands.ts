/** The panel's verbs as commands: for the palette, the context menus, the shortcuts and other extensions. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import type { ICommandPalette } from '@jupyterlab/apputils';
import type { LabIcon } from '@jupyterlab/ui-components';
import type { Actions } from './actions';
import type { ISnapshot } from './api';
import type { CellMarks } from './cellmarks';
import { showComparison } from './compare';
import * as icons from './icons';
import type { Snapshots } from './model';

const CATEGORY = 'Snapshots';

interface ICommand {
  label: string;
  caption: string;
  icon: LabIcon;
  run: () => Promise<void>;
  enabled?: () => boolean;
}

/** Make every command known to Lab. Those about a snapshot are about the selected one. */
export function addCommands(
  app: JupyterFrontEnd,
  palette: ICommandPalette | null,
  parts: { model: Snapshots; actions: Actions; marks: CellMarks; show: () => void }
): void {
  const { model, actions, marks, show } = parts;
  const ready = (): boolean => model.ready;
  const chosen = (): boolean => model.selection !== null;
  const about = (act: (snapshot: ISnapshot) => Promise<void>) => async (): Promise<void> => {
    if (model.selection !== null) {
      await act(model.selection);
    }
  };
  const commands: Record<string, ICommand> = {
    save: {
      label: 'Save a Snapshot…',
      caption: 'Save memory, files and the notebook as they are now',
      icon: icons.saveIcon,
      run: () => actions.save(),
      enabled: ready
    },
    'undo-cell': {
      label: 'Undo the Last Cell',
      caption: 'Go back to before the cell that ran last, in memory, files and the notebook',
      icon: icons.undoIcon,
      run: () => actions.undo(),
      enabled: ready
    },
    'before-cell': {
      label: 'Go Back to Before This Cell',
      caption: 'Go back to the last snapshot from before this cell ran',
      icon: icons.backIcon,
      run: () => marks.goBackBeforeActive(),
      enabled: () => marks.beforeActive() !== null
    },
    'go-back': {
      label: 'Go Back Here',
      caption: 'Go back to this snapshot in place; what is left is saved first',
      icon: icons.backIcon,
      run: about(snapshot => actions.goBack(snapshot)),
      enabled: () => ready() && chosen()
    },
    fork: {
      label: 'Fork into a New Tab',
      caption: 'Open a copy of this snapshot beside this tab',
      icon: icons.forkIcon,
      run: about(snapshot => actions.fork(snapshot)),
      enabled: () => model.selection?.kernel === true
    },
    'fork-running': {
      label: 'Fork the Running Notebook into a New Tab',
      caption: 'Open a copy of the program and the notebook as they are now',
      icon: icons.forkIcon,
      run: () => actions.fork(null),
      enabled: ready
    },
    compare: {
      label: 'Compare with Now',
      caption: 'What changed between this snapshot and the running notebook: code, variables, files',
      icon: icons.compareIcon,
      run: about(snapshot => showComparison(app, model, snapshot)),
      enabled: chosen
    },
    rename: {
      label: 'Rename…',
      caption: 'Give this snapshot’s branch another name',
      icon: icons.renameIcon,
      run: about(snapshot => actions.rename(snapshot)),
      enabled: chosen
    },
    tag: {
      label: 'Tag…',
      caption: 'Name this snapshot, and keep it from being removed',
      icon: icons.tagIcon,
      run: about(snapshot => actions.tag(snapshot)),
      enabled: chosen
    },
    delete: {
      label: 'Delete…',
      caption: 'Remove this snapshot, after saying what comes back',
      icon: icons.deleteIcon,
      run: about(snapshot => actions.remove(snapshot)),
      enabled: chosen
    },
    adopt: {
      label: 'Adopt Files…',
      caption: 'Bring the files that the program wrote into your folder',
      icon: icons.adoptIcon,
      run: about(snapshot => actions.adopt(snapshot)),
      enabled: chosen
    },
    'show-panel': {
      label: 'Show the Snapshots',
      caption: 'Show the tree of this notebook’s snapshots',
      icon: icons.treeIcon,
      run: async () => show()
    }
  };
  for (const [id, { label, caption, icon, run, enabled }] of Object.entries(commands)) {
    const command = `ijfs:${id}`;
    app.commands.addCommand(command, {
      label,
      caption,
      icon,
      isEnabled: enabled,
      execute: () => actions.attempt(run),
      describedBy: { args: { type: 'object', properties: {} } }
    });
    palette?.addItem({ command, category: CATEGORY });
  }
  model.changed.connect(() => Object.keys(commands).forEach(id => app.commands.notifyCommandChanged(`ijfs:${id}`)));
}
