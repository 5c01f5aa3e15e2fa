/** What the panel, the status bar and the marks at cells show: the notebook in front, its kernel, and the tree. */

import type { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import type { Event, Kernel } from '@jupyterlab/services';
import { Debouncer } from '@lumino/polling';
import { ISignal, Signal } from '@lumino/signaling';
import { Api, ApiError, IEvent, ISnapshot, ITree, Status } from './api';
import { documentOf } from './notebook';
import { byId } from './tree';

/** Events come in bursts (saving, saved, refs): one look at the tree answers them all. */
const SETTLE_MS = 100;

const TREE_CHANGES = new Set(['saved', 'refs', 'removed', 'restored', 'started', 'exited']);

export type Scope = 'notebook' | 'all';

/** The one model of a browser's page. `changed` says that something of it is to be drawn anew. */
export class Snapshots {
  tree: ITree | null = null;
  snapshots: Map<string, ISnapshot> = new Map();
  status: Status | null = null;
  error: ApiError | null = null;
  scope: Scope = 'notebook';
  selected: string | null = null;

  private schema = '';
  private asked = 0;
  private readonly _changed = new Signal<this, void>(this);
  private readonly _restoredElsewhere = new Signal<this, IEvent>(this);
  private readonly ownRestores = new Set<string>();
  private readonly later = new Debouncer(() => this.refresh(), SETTLE_MS);
  private readonly statusLater = new Debouncer(() => this.refreshStatus(), SETTLE_MS);

  constructor(
    readonly api: Api,
    private readonly tracker: INotebookTracker,
    events: Event.IManager
  ) {
    tracker.currentChanged.connect((_, panel) => this.follow(panel));
    events.stream.connect((_, emission) => this.hear(emission));
    api.info().then(
      ({ schema }) => (this.schema = schema),
      () => undefined // the tree says why nothing answers
    );
    this.follow(tracker.currentWidget);
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** The kernel of the notebook in front went back, and nobody here asked for it. */
  get restoredElsewhere(): ISignal<this, IEvent> {
    return this._restoredElsewhere;
  }

  get notebook(): NotebookPanel | null {
    return this.tracker.currentWidget;
  }

  get kernel(): Kernel.IKernelConnection | null {
    return this.notebook?.sessionContext.session?.kernel ?? null;
  }

  /** Whether the notebook in front has a kernel that can be saved and go back. */
  get ready(): boolean {
    return this.kernel !== null && this.status?.ijfs === true;
  }

  /** The snapshot that the kernel of the notebook in front stands on. */
  get here(): string | null {
    return this.status?.ijfs ? this.tree?.here ?? null : null;
  }

  /** The snapshot that the keys and buttons are about. */
  get selection(): ISnapshot | null {
    return this.snapshots.get(this.selected ?? '') ?? null;
  }

  select(snapshot: string | null): void {
    this.selected = snapshot;
    this._changed.emit();
  }

  setScope(scope: Scope): void {
    this.scope = scope;
    void this.refresh();
  }

  /** Ask for the tree and the kernel's state anew. An answer that a later question overtook is dropped. */
  async refresh(): Promise<void> {
    const ask = (this.asked += 1);
    const { kernel, notebook } = this;
    const scope = notebook === null ? 'all' : this.scope;
    try {
      const [tree, status] = await Promise.all([
        this.api.tree({ kernel: kernel?.id, path: notebook?.context.path, scope }),
        kernel === null ? null : this.statusOf(kernel.id)
      ]);
      this.show(ask, () => this.take(tree, status));
    } catch (error) {
      this.show(ask, () => (this.error = asApiError(error)));
    }
  }

  /** Run `restore` while what the event bus says of that kernel's going back is known to be ours. */
  async restoring<T>(kernel: string, restore: () => Promise<T>): Promise<T> {
    this.ownRestores.add(kernel);
    try {
      return await restore();
    } finally {
      await this.refresh();
      this.ownRestores.delete(kernel);
    }
  }

  private show(ask: number, change: () => void): void {
    if (ask === this.asked) {
      change();
      this._changed.emit();
    }
  }

  private take(tree: ITree, status: Status | null): void {
    Object.assign(this, { tree, status, error: null, snapshots: byId(tree) });
    this.api.repository = tree.repository;
  }

  /** Null for a kernel that is just going. */
  private async statusOf(kernel: string): Promise<Status | null> {
    try {
      return await this.api.status(kernel);
    } catch (error) {
      if (error instanceof ApiError && error.type === 'UnknownKernelError') {
        return null;
      }
      throw error;
    }
  }

  private async refreshStatus(): Promise<void> {
    const { kernel } = this;
    const status = kernel === null ? null : await this.api.status(kernel.id).catch(() => null);
    if (kernel === this.kernel) {
      this.status = status;
      this._changed.emit();
    }
  }

  private follow(panel: NotebookPanel | null): void {
    if (panel !== null) {
      panel.sessionContext.kernelChanged.disconnect(this.onKernel, this);
      panel.sessionContext.kernelChanged.connect(this.onKernel, this);
      panel.context.pathChanged.disconnect(this.onKernel, this);
      panel.context.pathChanged.connect(this.onKernel, this);
    }
    this.onKernel();
  }

  private onKernel(): void {
    this.status = null;
    void this.later.invoke();
  }

  /** A save from elsewhere asks for the notebook: whoever has it open gives it. Where nobody does, the file is taken. */
  private async give({ kernel, text: ticket }: IEvent): Promise<void> {
    const panel = this.tracker.find(each => each.sessionContext.session?.kernel?.id === kernel);
    if (panel !== undefined && kernel) {
      await this.api.give({ kernel, ticket, document: documentOf(panel) }).catch(() => undefined);
    }
  }

  private hear(emission: Event.Emission): void {
    if (emission.schema_id !== this.schema) {
      return;
    }
    const event = emission as unknown as IEvent;
    if (event.kind === 'document') {
      void this.give(event);
    }
    if (TREE_CHANGES.has(event.kind)) {
      void this.later.invoke();
    } else if (event.kernel === this.kernel?.id) {
      void this.statusLater.invoke();
    }
    if (event.kind === 'restored' && event.kernel === this.kernel?.id && !this.ownRestores.has(event.kernel)) {
      this._restoredElsewhere.emit(event);
    }
  }
}

function asApiError(error: unknown): ApiError {
  return error instanceof ApiError ? error : new ApiError(String(error), '', 'Error', 0);
}
