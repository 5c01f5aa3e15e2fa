/** What can be done with snapshots: asks the user where something is to be asked, then the server, then says what came of it. */

import { Dialog, InputDialog, Notification, showDialog } from '@jupyterlab/apputils';
import type { NotebookPanel } from '@jupyterlab/notebook';
import type { CommandRegistry } from '@lumino/commands';
import { Widget } from '@lumino/widgets';
import { ApiError, IFileChange, IRestored, ISnapshot, WhenBusy } from './api';
import type { Snapshots } from './model';
import { bringBack, documentOf, lastCount, markTurn, reconnect } from './notebook';
import * as words from './words';

const TOAST_MS = 15000;
/** The server may hear later than the browser that a cell has ended: it is asked again before the user is. */
const LATE_TRIES = 15;
const LATE_MS = 200;
/** What is done sooner needs no word that it goes on. */
const SOON_MS = 500;
/** Files named one by one in a question; the others are counted. */
const NAMED_FILES = 12;

/** What going back does with the document: puts the snapshot's in its place, or keeps the newer text and marks it. */
export type DocumentWish = 'restore' | 'keep';

/** The verbs of the panel, for its buttons, keys and commands. */
export class Actions {
  documentWish: DocumentWish = 'restore';

  constructor(
    private readonly model: Snapshots,
    private readonly commands: CommandRegistry
  ) {}

  /** Ask for a message, and save the program with the document as it is in the browser. */
  async save(): Promise<void> {
    const { panel, kernel } = this.notebook();
    const asked = await InputDialog.getText({
      title: 'Save a snapshot',
      label: 'Memory, files and the notebook as they are now',
      placeholder: 'Message (may stay empty)',
      okLabel: 'Save'
    });
    if (asked.button.accept) {
      await this.saveAs(panel, kernel, asked.value ?? '');
    }
  }

  /** Go back to before the cell that ran last. */
  async undo(): Promise<void> {
    const { panel, kernel } = this.notebook();
    const body = { kernel, document: documentOf(panel), path: panel.context.path };
    const undone = await this.whenIdle(busy =>
      this.model.restoring(kernel, () => during('Going back', this.model.api.undo({ ...body, busy })))
    );
    if (undone !== null) {
      await this.arrive(panel, undone, undone.exact ? 'The last cell is undone' : `Undone: ${cellsOf(undone.cells)}, as nothing newer was saved`);
    }
  }

  /** Go back in place; what is left is saved first. */
  async goBack(snapshot: ISnapshot): Promise<void> {
    const { panel } = this.notebook();
    if (this.isOwn(snapshot, panel) || (await confirmStranger(snapshot))) {
      await this.goTo(panel, snapshot.id, `Back at ${name(snapshot)}`);
    }
  }

  /** A copy of the running program, or of a snapshot, in a tab beside this one, with a copy of the document. */
  async fork(snapshot: ISnapshot | null): Promise<void> {
    const panel = this.model.notebook;
    const path = panel?.context.path ?? snapshot?.notebook ?? undefined;
    const source = snapshot === null ? this.running() : { snapshot: snapshot.id };
    const made = await during('Forking', this.model.api.fork({ ...source, path }));
    await this.commands.execute('docmanager:open', {
      path: made.path,
      factory: 'Notebook',
      kernel: { id: made.kernel.id, name: made.kernel.name },
      options: { mode: 'split-right', ref: panel?.id }
    });
    await this.model.refresh();
  }

  /** Give a snapshot's branch another name; where there is none, one of that name. */
  async rename(snapshot: ISnapshot): Promise<void> {
    const branch = snapshot.branches[0];
    const name = await ask(branch ? `Rename the branch ${branch}` : `Name ${words.short(snapshot.id)}`, 'Name', branch ?? '');
    if (name && name !== branch) {
      await this.model.api.rename(branch ? { branch, name } : { snapshot: snapshot.id, name });
      await this.model.refresh();
    }
  }

  /** Put a tag on a snapshot, which keeps it from being removed. */
  async tag(snapshot: ISnapshot): Promise<void> {
    const name = await ask(`Tag ${words.short(snapshot.id)}`, 'A tag keeps the snapshot from being removed', '');
    if (name) {
      await this.model.api.tag(snapshot.id, name);
      await this.model.refresh();
    }
  }

  /** Take a tag away. */
  async untag(tag: string): Promise<void> {
    if (await confirm(`Remove the tag ${tag}?`, 'The snapshot stays.', 'Remove')) {
      await this.model.api.untag(tag);
      await this.model.refresh();
    }
  }

  /** Remove a snapshot, after saying what comes back. */
  async remove(snapshot: ISnapshot): Promise<void> {
    const { bytes } = await this.model.api.delete([snapshot.id], true);
    const question = `Delete ${name(snapshot)}?`;
    const answer = `${words.bytes(bytes)} are its own and come back; what other snapshots share stays. This cannot be undone.`;
    if (await confirm(question, answer, 'Delete', true)) {
      await this.model.api.delete([snapshot.id], false);
      this.model.select(null);
      await this.model.refresh();
    }
  }

  /** Bring the files that a snapshot's program wrote to this machine, after showing which. */
  async adopt(snapshot: ISnapshot): Promise<void> {
    const { files } = await this.model.api.adopt(snapshot.id, true);
    if (files.length === 0) {
      Notification.info('The program changed no files in its working directory.', { autoClose: TOAST_MS });
      return;
    }
    const choice = await askWhichFiles(files);
    if (choice !== null) {
      const done = await during('Bringing files', this.model.api.adopt(snapshot.id, false, choice));
      Notification.success(`${words.plural(done.files.length, 'file')} adopted.`, { autoClose: TOAST_MS });
      done.left.forEach(({ path, why }) => Notification.warning(`${path}: ${why}`, { autoClose: TOAST_MS }));
    }
  }

  /** Run an action, and show the sentence of one that is refused. */
  async attempt(action: () => Promise<void>): Promise<void> {
    try {
      await action();
    } catch (error) {
      const { message, hint } = error instanceof ApiError ? error : { message: String(error), hint: '' };
      Notification.error(hint ? `${message}: ${hint}` : message, { autoClose: TOAST_MS });
    }
  }

  private async saveAs(panel: NotebookPanel, kernel: string, message: string): Promise<void> {
    const body = { kernel, message, document: documentOf(panel), path: panel.context.path };
    const saved = await during('Saving', this.model.api.save(body));
    saved.warnings.forEach(warning => Notification.warning(warning, { autoClose: TOAST_MS }));
    await this.model.refresh();
    this.model.select(saved.snapshot);
  }

  private async goTo(panel: NotebookPanel, snapshot: string, said: string): Promise<void> {
    const kernel = panel.sessionContext.session?.kernel?.id ?? '';
    const body = { kernel, snapshot, document: documentOf(panel), path: panel.context.path };
    const restored = await this.whenIdle(busy =>
      this.model.restoring(kernel, () => during('Going back', this.model.api.restore({ ...body, busy })))
    );
    if (restored !== null) {
      await this.arrive(panel, restored, said);
    }
  }

  /** The document, the widgets, and the toast after going back. */
  private async arrive(panel: NotebookPanel, restored: IRestored, said: string): Promise<void> {
    await this.settle(panel, restored);
    const { left, notices, waiting_for_input: waiting } = restored;
    const undo = { label: 'Undo', caption: 'Return to what was left', callback: () => this.back(panel, left) };
    Notification.success(said, { autoClose: TOAST_MS, actions: left === null ? [] : [undo] });
    if (waiting) {
      this.offerInput(panel);
    }
    notices.forEach(notice => Notification.info(notice, { autoClose: TOAST_MS }));
  }

  /** Bring the document and the widgets to where the kernel is. */
  async settle(panel: NotebookPanel, at: Pick<IRestored, 'snapshot' | 'document' | 'count'>): Promise<void> {
    if (this.documentWish === 'keep' || at.document === null) {
      markTurn(panel, at.snapshot, at.count ?? lastCount(at.document));
    } else {
      await bringBack(panel, at.document);
    }
    await reconnect(panel);
  }

  /** The box of an input() that waits is not in the notebook that was brought back: it is offered here. */
  private offerInput(panel: NotebookPanel): void {
    const answer = async (): Promise<void> => {
      const asked = await InputDialog.getText({ title: 'The program waits for input()', label: 'Answer', okLabel: 'Send' });
      const kernel = panel.sessionContext.session?.kernel;
      if (asked.button.accept && kernel) {
        await this.model.api.input(kernel.id, asked.value ?? '');
      }
    };
    Notification.warning('The program waits for input().', {
      autoClose: false,
      actions: [{ label: 'Answer it', callback: () => void this.attempt(answer) }]
    });
  }

  private back(panel: NotebookPanel, left: string | null): void {
    if (left !== null) {
      void this.attempt(() => this.goTo(panel, left, 'Returned to what was left'));
    }
  }

  /** Where a cell runs, ask whether to interrupt it, to go all the same, or not at all (null). */
  private async whenIdle<T>(go: (busy: WhenBusy) => Promise<T>): Promise<T | null> {
    for (let tries = 0; tries < LATE_TRIES; tries += 1) {
      try {
        return await go('refuse');
      } catch (error) {
        if (!(error instanceof ApiError) || error.type !== 'KernelBusyError') {
          throw error;
        }
      }
      if (this.model.kernel?.status !== 'idle') {
        break;
      }
      await new Promise(resolve => setTimeout(resolve, LATE_MS));
    }
    const busy = await askBusy();
    return busy === null ? null : go(busy);
  }

  /** Whether a snapshot is one of this notebook's own; the tree of one notebook has no others. */
  private isOwn(snapshot: ISnapshot, panel: NotebookPanel): boolean {
    const { scope, status } = this.model;
    const program = status?.ijfs ? status.instance : null;
    return scope === 'notebook' || snapshot.program === program || snapshot.notebook === panel.context.path;
  }

  private notebook(): { panel: NotebookPanel; kernel: string } {
    const { notebook, kernel } = this.model;
    if (notebook === null || kernel === null) {
      throw new ApiError('There is no notebook with a kernel in front', 'open one', 'UsageError', 0);
    }
    return { panel: notebook, kernel: kernel.id };
  }

  private running(): { kernel: string; document: ReturnType<typeof documentOf> } {
    const { panel, kernel } = this.notebook();
    return { kernel, document: documentOf(panel) };
  }
}

/** What a person calls a snapshot. */
export function name(snapshot: ISnapshot): string {
  return snapshot.message ? `“${snapshot.message}”` : words.short(snapshot.id);
}

async function confirmStranger(snapshot: ISnapshot): Promise<boolean> {
  const question = `Go back to ${name(snapshot)} here all the same? The kernel and the notebook here are saved first.`;
  return confirm('This snapshot is of another notebook', question, 'Go back');
}

function cellsOf(count: number | null): string {
  return count === null ? 'more than the last cell' : words.plural(count, 'cell');
}

async function ask(title: string, label: string, text: string): Promise<string> {
  const asked = await InputDialog.getText({ title, label, text, okLabel: 'OK' });
  return asked.button.accept ? (asked.value ?? '').trim() : '';
}

async function confirm(title: string, body: string, label: string, warn = false): Promise<boolean> {
  const accept = warn ? Dialog.warnButton({ label }) : Dialog.okButton({ label });
  return (await showDialog({ title, body, buttons: [Dialog.cancelButton(), accept] })).button.accept;
}

async function askBusy(): Promise<WhenBusy | null> {
  const asked = await showDialog({
    title: 'A cell is running',
    body: 'Interrupt it, so that it ends with KeyboardInterrupt, and go back? Or go back while it runs: what it does from now on is lost.',
    buttons: [
      Dialog.cancelButton(),
      Dialog.warnButton({ label: 'Go back all the same' }),
      Dialog.okButton({ label: 'Interrupt and go back' })
    ]
  });
  if (!asked.button.accept) {
    return null;
  }
  return asked.button.displayType === 'warn' ? 'force' : 'interrupt';
}

/** Which files count where both sides have changed one; '' where none was, null for none at all. */
async function askWhichFiles(files: IFileChange[]): Promise<'' | 'ours' | 'theirs' | null> {
  const clashes = files.some(file => file.conflict);
  const buttons = clashes
    ? [Dialog.warnButton({ label: 'Take the snapshot’s' }), Dialog.okButton({ label: 'Keep mine where both changed' })]
    : [Dialog.okButton({ label: 'Adopt' })];
  const title = `Bring ${words.plural(files.length, 'file')} to your folder?`;
  const asked = await showDialog({ title, body: listed(files), buttons: [Dialog.cancelButton(), ...buttons] });
  if (!asked.button.accept) {
    return null;
  }
  return clashes ? (asked.button.displayType === 'warn' ? 'theirs' : 'ours') : '';
}

/** Say what goes on where it takes so long that one would wonder. */
async function during<T>(text: string, work: Promise<T>): Promise<T> {
  let shown = '';
  const timer = setTimeout(() => (shown = Notification.emit(`${text}…`, 'in-progress', { autoClose: false })), SOON_MS);
  try {
    return await work;
  } finally {
    clearTimeout(timer);
    if (shown) {
      Notification.dismiss(shown);
    }
  }
}

/** The files of a question, a line each. */
function listed(files: IFileChange[]): Widget {
  const signs: Record<string, string> = { added: '+', removed: '−', changed: '~' };
  const shown = files.slice(0, NAMED_FILES).map(file => {
    const clash = file.conflict ? ' (changed here, too)' : '';
    return `${signs[file.change] ?? ' '} ${file.path}${clash}`;
  });
  const more = files.length - shown.length;
  const node = document.createElement('pre');
  node.className = 'ijfs-List';
  node.textContent = [...shown, ...(more > 0 ? [`… and ${more} more`] : [])].join('\n');
  return new Widget({ node });
}
