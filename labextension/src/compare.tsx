/** Two states side by side: the code cell by cell, variables, files. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import { MainAreaWidget, ReactWidget } from '@jupyterlab/apputils';
import React from 'react';
import { name } from './actions';
import { ApiError, Change, ICellChange, IComparison, IFileChange, ISnapshot, IValue, IVariableChange } from './api';
import { compareIcon } from './icons';
import type { Snapshots } from './model';
import { documentOf } from './notebook';
import * as words from './words';

const SIGNS: Record<Change, string> = { same: ' ', changed: '~', added: '+', removed: '−', unknown: '?' };

/** Open a tab that compares a snapshot with the notebook in front as it is now; without one, with the last snapshot. */
export async function showComparison(app: JupyterFrontEnd, model: Snapshots, snapshot: ISnapshot): Promise<void> {
  const { notebook, kernel } = model;
  const now =
    model.ready && notebook && kernel
      ? { new: 'live', kernel: kernel.id, document: documentOf(notebook) }
      : { new: model.tree?.here ?? 'latest' };
  const ask = (parts: string): Promise<IComparison> => model.api.compare({ old: snapshot.id, ...now, parts });
  const content = ReactWidget.create(<Comparison ask={ask} />);
  content.addClass('ijfs-Compare');
  const widget = new MainAreaWidget({ content });
  widget.title.label = `${name(snapshot)} ↔ now`;
  widget.title.icon = compareIcon;
  widget.title.closable = true;
  const isOneDocument = app.name === 'Jupyter Notebook';
  app.shell.add(widget, isOneDocument ? 'right' : 'main', { mode: 'split-right' });
  app.shell.activateById(widget.id);
}

type Answer = IComparison | ApiError | null;

function isAnswered(answer: Answer): answer is IComparison {
  return answer !== null && !(answer instanceof ApiError);
}

function Comparison({ ask }: { ask: (parts: string) => Promise<IComparison> }): JSX.Element {
  const code = useAnswer(ask, 'cells,files');
  const values = useAnswer(ask, 'variables');
  return (
    <div className="ijfs-Compare-all">
      <Part title="Code" answer={code}>
        {answer => <Cells cells={answer.cells ?? []} />}
      </Part>
      {isAnswered(values) && values.variables === undefined ? null : (
        <Part title="Variables" answer={values}>
          {({ variables, variables_error: error }) => <Variables variables={variables ?? []} error={error ?? ''} />}
        </Part>
      )}
      <Part title="Files" answer={code}>
        {answer =>
          answer.files_error ? (
            <p role="alert">{answer.files_error}</p>
          ) : (
            <Files files={answer.files ?? []} isCut={answer.files_cut ?? false} />
          )
        }
      </Part>
    </div>
  );
}

function useAnswer(ask: (parts: string) => Promise<IComparison>, parts: string): Answer {
  const [answer, setAnswer] = React.useState<Answer>(null);
  React.useEffect(() => {
    ask(parts).then(setAnswer, error => setAnswer(error instanceof ApiError ? error : new ApiError(String(error), '', '', 0)));
  }, []);
  return answer;
}

interface IPartProps {
  title: string;
  answer: Answer;
  children: (answer: IComparison) => JSX.Element;
}

function Part({ title, answer, children }: IPartProps): JSX.Element {
  return (
    <section aria-label={title}>
      <h2>{title}</h2>
      {answer === null ? (
        <p className="ijfs-Hint">Comparing…</p>
      ) : answer instanceof ApiError ? (
        <p role="alert">{answer.message}</p>
      ) : (
        children(answer)
      )}
    </section>
  );
}

function Cells({ cells }: { cells: ICellChange[] }): JSX.Element {
  const [all, setAll] = React.useState(false);
  const differs = cells.filter(cell => cell.change !== 'same' || cell.outputs === 'changed');
  const same = cells.length - differs.length;
  return (
    <>
      {differs.length === 0 && <p className="ijfs-Hint">The code is the same.</p>}
      {(all ? cells : differs).map((cell, index) => (
        <CellDiff key={index} cell={cell} />
      ))}
      {same > 0 && (
        <button className="ijfs-Button" onClick={() => setAll(!all)}>
          {all ? 'Hide' : 'Show'} {words.plural(same, 'cell')} that did not change
        </button>
      )}
    </>
  );
}

function CellDiff({ cell }: { cell: ICellChange }): JSX.Element {
  const { change, lines, old_count: before, new_count: after } = cell;
  return (
    <div className={`ijfs-CellDiff ijfs-mod-${change}`}>
      <header>
        {change} {cell.cell_type === 'code' ? counts(before, after) : cell.cell_type}
      </header>
      <pre tabIndex={0}>
        {lines.map(([sign, text], index) => (
          <div key={index} className={sign === '+' ? 'ijfs-mod-added' : sign === '-' ? 'ijfs-mod-removed' : ''}>
            <span aria-hidden="true">{sign === '-' ? '−' : sign}</span> {text}
          </div>
        ))}
      </pre>
      {cell.outputs === 'changed' && (
        <details>
          <summary>Outputs changed</summary>
          <div className="ijfs-Outputs">
            <pre className="ijfs-mod-removed" tabIndex={0}>
              {outputText(cell.old_outputs)}
            </pre>
            <pre className="ijfs-mod-added" tabIndex={0}>
              {outputText(cell.new_outputs)}
            </pre>
          </div>
        </details>
      )}
    </div>
  );
}

function counts(before: number | null, after: number | null): string {
  const [old, now] = [before, after].map(count => `[${count ?? ' '}]`);
  return before === after || before === null || after === null ? (after === null ? old : now) : `${old} → ${now}`;
}

interface IOutput {
  output_type?: string;
  text?: string | string[];
  data?: Record<string, unknown>;
  ename?: string;
  evalue?: string;
}

/** An output as plain text; of a picture, what kind it is. */
function outputText(outputs: unknown[]): string {
  const texts = (outputs as IOutput[]).map(output => {
    const { text, data, ename, evalue } = output;
    const plain = text ?? (data?.['text/plain'] as string | string[] | undefined);
    return ename ? `${ename}: ${evalue}` : plain === undefined ? Object.keys(data ?? {}).join(', ') : [plain].flat().join('');
  });
  return texts.join('\n') || '(nothing)';
}

function Variables({ variables, error }: { variables: IVariableChange[]; error: string }): JSX.Element {
  const [all, setAll] = React.useState(false);
  const differs = variables.filter(variable => variable.change !== 'same');
  const same = variables.length - differs.length;
  if (error) {
    return <p className="ijfs-Hint">{error}</p>;
  }
  return (
    <>
      {differs.length === 0 && <p className="ijfs-Hint">No variable changed.</p>}
      {(all ? variables : differs).length > 0 && (
        <table>
          <thead>
            <tr>
              <th>
                <span className="ijfs-Unseen">Change</span>
              </th>
              <th>Name</th>
              <th>Then</th>
              <th>Now</th>
            </tr>
          </thead>
          <tbody>
            {(all ? variables : differs).map(variable => (
              <tr key={variable.name} className={`ijfs-mod-${variable.change}`}>
                <td title={variable.change}>{SIGNS[variable.change]}</td>
                <td>
                  <code>{variable.name}</code>
                </td>
                <td>{valueText(variable.old)}</td>
                <td>{valueText(variable.new)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {same > 0 && (
        <button className="ijfs-Button" onClick={() => setAll(!all)}>
          {all ? 'Hide' : 'Show'} {words.plural(same, 'variable')} that did not change
        </button>
      )}
    </>
  );
}

function valueText(value: IValue | null): string {
  if (value === null) {
    return '–';
  }
  const shape = Array.isArray(value.shape) ? value.shape.join(' × ') : value.shape ?? '';
  const size = value.size === null ? '' : words.bytes(value.size);
  return [value.type, shape, size].filter(Boolean).join(' · ');
}

/** A directory's own times: what changed in it is said of what is in it. */
function isOnlyTimes({ change, old_size: before, new_size: after }: IFileChange): boolean {
  return change === 'changed' && before === 0 && after === 0;
}

function Files({ files: found, isCut }: { files: IFileChange[]; isCut: boolean }): JSX.Element {
  const files = found.filter(file => !isOnlyTimes(file));
  if (files.length === 0) {
    return <p className="ijfs-Hint">No file changed.</p>;
  }
  return (
    <>
      <table>
        <tbody>
          {files.map(file => (
            <tr key={file.path} className={`ijfs-mod-${file.change}`}>
              <td title={file.change}>{SIGNS[file.change]}</td>
              <td>
                <code>{file.path}</code>
              </td>
              <td>{[file.old_size, file.new_size].map(size => (size === null ? '–' : words.bytes(size))).join(' → ')}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {isCut && <p className="ijfs-Hint">There are more.</p>}
    </>
  );
}
