/** What a reopened notebook is offered: to go on from its last snapshot, or with the program that outlived its server. */

import { Notification } from '@jupyterlab/apputils';
import type { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import { name } from './actions';
import type { Actions } from './actions';
import type { IOffer } from './api';
import type { Snapshots } from './model';
import { ago } from './words';

/** Offers each notebook once, when its first kernel is fresh. */
export class Offers {
  constructor(
    private readonly model: Snapshots,
    private readonly actions: Actions,
    tracker: INotebookTracker
  ) {
    tracker.widgetAdded.connect((_, panel) => void this.watch(panel));
    tracker.forEach(panel => void this.watch(panel));
  }

  private async watch(panel: NotebookPanel): Promise<void> {
    await panel.context.ready;
    await panel.sessionContext.ready;
    const offer = await this.model.api.offer(panel.context.path).catch(() => null);
    if (offer !== null && !panel.isDisposed && (await this.isFresh(panel))) {
      this.make(panel, offer);
    }
  }

  /** Whether nothing was done in the notebook's kernel yet: only then is nothing lost by taking another. */
  private async isFresh(panel: NotebookPanel): Promise<boolean> {
    const kernel = panel.sessionContext.session?.kernel;
    if (!kernel) {
      return true;
    }
    const status = await this.model.api.status(kernel.id).catch(() => null);
    return status !== null && status.ijfs && !status.attached && status.snapshot === null && !status.count;
  }

  private make(panel: NotebookPanel, offer: IOffer): void {
    const [live] = offer.live;
    if (live !== undefined) {
      this.ask(panel, `${live.name} of this notebook is still live.`, 'Go on with it', { instance: live.name });
    } else if (offer.snapshot !== null) {
      const { id, created } = offer.snapshot;
      const when = `${name(offer.snapshot)}, ${ago(created, Date.now())}`;
      this.ask(panel, `The last snapshot of this notebook is ${when}.`, 'Go on from it', { snapshot: id });
    }
  }

  private ask(panel: NotebookPanel, text: string, label: string, from: { snapshot?: string; instance?: string }): void {
    const callback = (): void => void this.actions.attempt(() => this.resume(panel, from));
    Notification.info(text, { autoClose: false, actions: [{ label, displayType: 'accent', callback }] });
  }

  private async resume(panel: NotebookPanel, from: { snapshot?: string; instance?: string }): Promise<void> {
    const resumed = await this.model.api.resume({ path: panel.context.path, ...from });
    await panel.sessionContext.changeKernel({ id: resumed.kernel.id });
    if (resumed.document !== null && resumed.snapshot !== null) {
      await this.actions.settle(panel, { snapshot: resumed.snapshot, document: resumed.document, count: null });
    }
    await this.model.refresh();
  }
}
