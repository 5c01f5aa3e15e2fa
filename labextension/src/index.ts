/** The panel "Snapshots" for JupyterLab 4 and Notebook 7: what it is made of, and where it stands. */

import { ILayoutRestorer, JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette, Notification } from '@jupyterlab/apputils';
import { INotebookTracker } from '@jupyterlab/notebook';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { Actions, DocumentWish } from './actions';
import { Api, IEvent } from './api';
import { CellMarks } from './cellmarks';
import { addCommands } from './commands';
import { Snapshots } from './model';
import { Offers } from './offers';
import { SnapshotsPanel } from './panel';
import { StatusItem } from './statusbar';

const ID = 'ijfs-panel:panel';
const KEEP = 'ijfs:keep-newer-text';

function activate(
  app: JupyterFrontEnd,
  tracker: INotebookTracker,
  palette: ICommandPalette | null,
  restorer: ILayoutRestorer | null,
  settings: ISettingRegistry | null,
  statusBar: IStatusBar | null
): void {
  const model = new Snapshots(new Api(app.serviceManager.serverSettings), tracker, app.serviceManager.events);
  const actions = new Actions(model, app.commands);
  const marks = new CellMarks(model, actions, tracker);
  const panel = new SnapshotsPanel({ model, actions, commands: app.commands });
  const show = (): void => app.shell.activateById(panel.id);
  addCommands(app, palette, { model, actions, marks, show });
  app.shell.add(panel, 'left', { rank: 600 });
  restorer?.add(panel, panel.id);
  statusBar?.registerStatusItem('ijfs:status', { item: new StatusItem(model, show), align: 'left', rank: 50 });
  new Offers(model, actions, tracker);
  model.restoredElsewhere.connect((_, event) => offerDocument(model, actions, event));
  void settings?.load(ID).then(loaded => {
    followSettings(app, actions, loaded);
    palette?.addItem({ command: KEEP, category: 'Snapshots' });
  });
}

function followSettings(app: JupyterFrontEnd, actions: Actions, settings: ISettingRegistry.ISettings): void {
  const take = (): void => {
    actions.documentWish = settings.get('document').composite as DocumentWish;
    app.commands.notifyCommandChanged(KEEP);
  };
  app.commands.addCommand(KEEP, {
    label: 'Keep the Newer Text When Going Back',
    caption: 'Leave the notebook as it is, and mark where time was turned back',
    isToggled: () => actions.documentWish === 'keep',
    execute: () => settings.set('document', actions.documentWish === 'keep' ? 'restore' : 'keep'),
    describedBy: { args: { type: 'object', properties: {} } }
  });
  settings.changed.connect(take);
  take();
}

/** The kernel went back by another's hand (a terminal, a cell): its document is offered, the widgets are asked anew. */
function offerDocument(model: Snapshots, actions: Actions, event: IEvent): void {
  const panel = model.notebook;
  if (panel === null) {
    return;
  }
  const bring = async (): Promise<void> => {
    const { document } = await model.api.document(event.snapshot);
    await actions.settle(panel, { snapshot: event.snapshot, document, count: null });
  };
  void panel.sessionContext.session?.kernel?.reconnect();
  Notification.info(`The kernel went back to ${event.snapshot.slice(0, 8)}. The notebook shows what came later.`, {
    autoClose: false,
    actions: [{ label: 'Bring the notebook back, too', callback: () => void actions.attempt(bring) }]
  });
}

const plugin: JupyterFrontEndPlugin<void> = {
  id: ID,
  description: 'The tree of a notebook’s snapshots: see it, go back, branch, compare.',
  autoStart: true,
  requires: [INotebookTracker],
  optional: [ICommandPalette, ILayoutRestorer, ISettingRegistry, IStatusBar],
  activate
};

export default plugin;
