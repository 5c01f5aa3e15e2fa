/** What the server answers under `/ijfs/api`, and the requests: nothing here knows the screen. */

import { URLExt } from '@jupyterlab/coreutils';
import type { INotebookContent } from '@jupyterlab/nbformat';
import { ServerConnection } from '@jupyterlab/services';

export type StrokeKind = 'pipe' | 'fork' | 'corner' | 'blank' | 'snapshot' | 'fold';
/** One column of a row's line art, and its lane: a lane has one colour. */
export type Stroke = [StrokeKind, number];

export interface ISnapshot {
  id: string;
  parents: string[];
  created: string;
  message: string;
  branches: string[];
  tags: string[];
  program: string;
  notebook: string | null;
  auto: boolean;
  /** Whether it is a kernel's: only such a one can be opened in a tab. */
  kernel: boolean;
  size: number | null;
  added: number | null;
  frozen_s: number | null;
  /** The prompt of the cell that ran last before it was saved. */
  count: number | null;
  live: string[];
}

export interface IRow {
  strokes: Stroke[];
  id?: string;
}

export interface ILive {
  name: string;
  snapshot: string | null;
  kernel: string | null;
  path: string | null;
  memory: number;
  busy: boolean;
}

export interface ITree {
  repository: string;
  stored: number | null;
  logical: number | null;
  instance: string | null;
  here: string | null;
  snapshots: ISnapshot[];
  rows: IRow[];
  live: ILive[];
}

export interface IKernelStatus {
  ijfs: true;
  instance: string;
  repository: string;
  status: 'running' | 'exited';
  snapshot: string | null;
  message: string | null;
  attached: boolean;
  busy: boolean;
  waiting_for_input: boolean;
  count: number | null;
  memory: number;
  saving: number;
  save_error: string;
  damage: string;
  size: number | null;
  added: number | null;
  frozen_s: number | null;
}

export interface INotIjfs {
  ijfs: false;
  reason: string;
  hint: string;
}

export type Status = IKernelStatus | INotIjfs;

export interface ISaved {
  snapshot: string;
  branch: string;
  frozen_s: number;
  warnings: string[];
}

export interface IRestored {
  snapshot: string;
  left: string | null;
  document: INotebookContent | null;
  count: number | null;
  notices: string[];
  waiting_for_input: boolean;
  instance: string;
}

export interface IUndone extends IRestored {
  exact: boolean;
  cells: number | null;
}

export interface IForked {
  snapshot: string;
  instance: string;
  path: string;
  kernel: { id: string; name: string };
}

export type Change = 'same' | 'changed' | 'added' | 'removed' | 'unknown';

export interface IFileChange {
  path: string;
  change: Change;
  old_size: number | null;
  new_size: number | null;
  conflict?: boolean;
}

export interface IAdopted {
  files: IFileChange[];
  applied: boolean;
  /** What could not be brought, and why. */
  left: { path: string; why: string }[];
}

export interface ICellChange {
  change: Change;
  cell_type: string;
  old_count: number | null;
  new_count: number | null;
  lines: [' ' | '-' | '+', string][];
  outputs: 'same' | 'changed';
  old_outputs: unknown[];
  new_outputs: unknown[];
}

export interface IValue {
  type: string;
  shape: string | number[] | null;
  size: number | null;
}

export interface IVariableChange {
  name: string;
  change: Change;
  old: IValue | null;
  new: IValue | null;
}

export interface IComparison {
  cells?: ICellChange[];
  variables?: IVariableChange[];
  variables_error?: string | null;
  files?: IFileChange[];
  files_cut?: boolean;
  files_error?: string | null;
}

export interface IOffer {
  snapshot: ISnapshot | null;
  live: { name: string; snapshot: string | null; memory: number }[];
}

export interface IResumed {
  kernel: { id: string; name: string };
  instance: string;
  snapshot: string | null;
  document: INotebookContent | null;
}

/** What the event bus brings. */
export interface IEvent {
  kind: string;
  repository: string;
  instance: string;
  kernel: string;
  snapshot: string;
  text: string;
}

export type WhenBusy = 'refuse' | 'interrupt' | 'force';

/** A request that was refused, with the server's sentence and its next step. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly hint: string,
    readonly type: string,
    readonly status: number
  ) {
    super(message);
  }
}

type Body = Record<string, unknown>;

/** The server's answers, typed. Every method raises ApiError where the server refuses. */
export class Api {
  /** The repository of the tree on the screen: what a snapshot's id in a request is looked for in. */
  repository = '';

  constructor(private readonly settings: ServerConnection.ISettings) {}

  info(): Promise<{ version: string; schema: string; repository: string }> {
    return this.get('info', {});
  }

  tree(query: { kernel?: string; path?: string; scope: 'notebook' | 'all' }): Promise<ITree> {
    return this.get('tree', query);
  }

  status(kernel: string): Promise<Status> {
    return this.get('status', { kernel });
  }

  save(body: { kernel: string; message: string; document?: INotebookContent; path?: string }): Promise<ISaved> {
    return this.post('save', body);
  }

  restore(body: {
    kernel: string;
    snapshot: string;
    document?: INotebookContent;
    path?: string;
    busy: WhenBusy;
  }): Promise<IRestored> {
    return this.post('restore', body);
  }

  undo(body: { kernel: string; document?: INotebookContent; path?: string; busy: WhenBusy }): Promise<IUndone> {
    return this.post('undo', body);
  }

  fork(body: { kernel?: string; snapshot?: string; path?: string; document?: INotebookContent }): Promise<IForked> {
    return this.post('fork', this.here(body));
  }

  tag(snapshot: string, name: string, force = false): Promise<{ name: string }> {
    return this.post('tag', this.here({ snapshot, name, force }));
  }

  untag(name: string): Promise<{ name: string }> {
    return this.post('untag', this.here({ name }));
  }

  rename(body: { branch?: string; snapshot?: string; name: string }): Promise<{ branch: string; name: string }> {
    return this.post('rename', this.here(body));
  }

  delete(snapshots: string[], dry_run: boolean): Promise<{ removed: string[]; bytes: number }> {
    return this.post('delete', this.here({ snapshots, dry_run }));
  }

  /** `choice`: what counts where both sides have changed a file; refused where that is not said. */
  adopt(snapshot: string, dry_run: boolean, choice: '' | 'ours' | 'theirs' = ''): Promise<IAdopted> {
    return this.post('adopt', this.here({ snapshot, dry_run, choice }));
  }

  document(snapshot: string): Promise<{ document: INotebookContent | null }> {
    return this.get('document', this.here({ snapshot }));
  }

  /** Answer a `document` event: a save from elsewhere asks for the notebook as it is here. */
  give(body: { kernel: string; ticket: string; document: INotebookContent }): Promise<unknown> {
    return this.post('give', body);
  }

  /** Type something for a cell that waits for it. */
  input(kernel: string, value: string): Promise<unknown> {
    return this.post('input', { kernel, value });
  }

  /** `new` may be `live`: the kernel as it is now, with the document as it is here. */
  compare(body: {
    old: string;
    new: string;
    kernel?: string;
    document?: INotebookContent;
    parts: string;
  }): Promise<IComparison> {
    return this.post('compare', this.here(body));
  }

  offer(path: string): Promise<IOffer> {
    return this.get('offer', { path });
  }

  resume(body: { path: string; snapshot?: string; instance?: string }): Promise<IResumed> {
    return this.post('resume', body);
  }

  private here<B extends object>(body: B): B & { repository: string } {
    return { ...body, repository: this.repository };
  }

  private get<T>(verb: string, query: Record<string, string | undefined>): Promise<T> {
    const asked = Object.entries(query).filter((pair): pair is [string, string] => Boolean(pair[1]));
    return this.ask(verb + URLExt.objectToQueryString(Object.fromEntries(asked)), { method: 'GET' });
  }

  private post<T>(verb: string, body: Body): Promise<T> {
    return this.ask(verb, { method: 'POST', body: JSON.stringify(body) });
  }

  private async ask<T>(target: string, init: RequestInit): Promise<T> {
    const url = URLExt.join(this.settings.baseUrl, 'ijfs/api', target);
    const response = await this.answer(url, init);
    if (!response.ok) {
      throw await refusal(response);
    }
    return (await response.json()) as T;
  }

  private async answer(url: string, init: RequestInit): Promise<Response> {
    try {
      return await ServerConnection.makeRequest(url, init, this.settings);
    } catch (error) {
      throw new ApiError('The Jupyter server does not answer', 'see whether it still runs', 'NetworkError', 0);
    }
  }
}

async function refusal(response: Response): Promise<ApiError> {
  const said = (await response.json().catch(() => ({}))) as Partial<{ message: string; hint: string; type: string }>;
  const type = said.type ?? '';
  if (response.status === 404 && !type) {
    return new ApiError(
      'This Jupyter server does not have the ijfs extension',
      'install ijfs where the server runs, and start it again',
      'NoExtensionError',
      404
    );
  }
  return new ApiError(said.message || response.statusText, said.hint ?? '', type, response.status);
}
