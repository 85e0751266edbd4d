//! The audit log: list, verification and export.

use actix_web::{HttpRequest, HttpResponse, get, http::header, post, web};
use askama::Template;
use futures_util::{Stream, stream};
use serde::Deserialize;
use tollkey_api::audit as api;
use tollkey_core::{
    Problem,
    audit::{Action, Entry},
};
use tollkey_service::{
    RequestActor,
    audit::{self, ChainCheck},
};

use super::{
    page::{self, Frame, Time},
    search::{has_secret, redirect_key_search},
    session::SignedIn,
};
use crate::{
    body::Query,
    rejection::HandlerResult,
    state::State,
    surfaces::audit::present::{entry, filter},
};

const SECTION: &str = "audit";
const SHOWN: u32 = 50;
/// How many entries of an export are in memory at a time.
const STEP: u32 = 500;

#[derive(Debug)]
pub(super) struct EntryView {
    pub(super) seq: u64,
    pub(super) at: Time,
    pub(super) action: &'static str,
    pub(super) actor: String,
    pub(super) actor_kind: &'static str,
    pub(super) target: String,
    pub(super) target_kind: &'static str,
    pub(super) link: Option<String>,
    pub(super) ip: Option<String>,
    pub(super) request_id: Option<String>,
    pub(super) changes: String,
    pub(super) hash: String,
}

impl From<&Entry> for EntryView {
    fn from(entry: &Entry) -> Self {
        let draft = &entry.draft;
        let (target, target_kind) = (draft.target.id.clone(), draft.target.kind.as_str());
        let link = match target_kind {
            "api_key" => Some(format!("/dashboard/keys/{target}")),
            "application" => Some(format!("/dashboard/applications/{target}")),
            _ => None,
        };
        Self {
            seq: entry.seq,
            at: Time(draft.occurred_at),
            action: draft.action.as_str(),
            actor: draft.actor.id.clone(),
            actor_kind: draft.actor.kind.as_str(),
            target,
            target_kind,
            link,
            ip: draft.ip.map(|ip| ip.to_string()),
            request_id: draft.request_id.clone(),
            changes: format!("{:#}", draft.changes),
            hash: entry.hash.to_string(),
        }
    }
}

/// Empty fields are not set; days are in UTC and inclusive.
#[derive(Debug, Clone, Default, Deserialize)]
struct LogQuery {
    #[serde(default)]
    action: String,
    #[serde(default)]
    target_id: String,
    #[serde(default)]
    actor_id: String,
    #[serde(default)]
    since: String,
    #[serde(default)]
    until: String,
    #[serde(default)]
    cursor: String,
    #[serde(default)]
    format: String,
    done: Option<String>,
}

impl LogQuery {
    fn is_filtered(&self) -> bool {
        self.pairs("").len() > 1
    }

    fn filter(&self) -> Result<audit::Filter, Problem> {
        let filled = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        let day = |name: &'static str, text: &str, days: i64| {
            filled(text)
                .map(|text| {
                    let day: jiff::civil::Date = text
                        .parse()
                        .map_err(|_| Problem::field(name, "must be a day"))?;
                    Ok::<_, Problem>(format!(
                        "{}T00:00:00Z",
                        day.saturating_add(jiff::Span::new().days(days))
                    ))
                })
                .transpose()
        };
        filter(&api::ListAuditLog {
            cursor: filled(&self.cursor),
            action: filled(&self.action),
            target_id: filled(&self.target_id),
            actor_id: filled(&self.actor_id),
            since: day("since", &self.since, 0)?,
            until: day("until", &self.until, 1)?,
            ..api::ListAuditLog::default()
        })
    }

    fn pairs<'a>(&'a self, cursor: &'a str) -> Vec<(&'static str, &'a str)> {
        let pairs = [
            ("action", self.action.as_str()),
            ("target_id", &self.target_id),
            ("actor_id", &self.actor_id),
            ("since", &self.since),
            ("until", &self.until),
            ("cursor", cursor),
        ];
        pairs
            .into_iter()
            .filter(|(name, value)| *name == "cursor" || !value.is_empty())
            .collect()
    }

    fn next_query(&self, cursor: &str) -> String {
        serde_urlencoded::to_string(self.pairs(cursor)).unwrap_or_default()
    }
}

#[derive(Template)]
#[template(path = "audit.html")]
struct LogPage {
    frame: Frame,
    query: LogQuery,
    actions: Vec<&'static str>,
    entries: Vec<EntryView>,
    next: Option<String>,
    /// The page is not full although there are more entries, because a search examines a bounded number of entries.
    is_partial: bool,
    checked: Option<ChainCheck>,
}

impl LogPage {
    async fn new(
        state: &State,
        visitor: &SignedIn,
        query: LogQuery,
        checked: Option<ChainCheck>,
    ) -> Result<Self, Problem> {
        let filter = audit::Filter {
            limit: SHOWN,
            ..query.filter()?
        };
        let found = audit::list(&state.service, &visitor.by, filter).await?;
        Ok(Self {
            frame: Frame::of(visitor, SECTION, "Audit log")
                .done(query.done.as_deref(), &["pasted"]),
            actions: Action::ALL.iter().map(|action| action.as_str()).collect(),
            entries: found.entries.iter().map(EntryView::from).collect(),
            is_partial: found.next.is_some() && found.entries.len() < SHOWN as usize,
            next: found.next.map(|next| query.next_query(&next.to_string())),
            query,
            checked,
        })
    }
}

#[get("/audit")]
pub(super) async fn list(
    state: web::Data<State>,
    visitor: SignedIn,
    request: HttpRequest,
    query: Query,
) -> HandlerResult {
    let query: LogQuery = query.read()?;
    if [&query.target_id, &query.actor_id]
        .iter()
        .any(|text| has_secret(text))
    {
        return Ok(redirect_key_search(&request, "/dashboard/audit"));
    }
    page::page(&LogPage::new(&state, &visitor, query, None).await?)
}

/// A POST, so that no crawler or preview starts it.
#[post("/audit/verify")]
pub(super) async fn verify(state: web::Data<State>, visitor: SignedIn) -> HandlerResult {
    let checked = audit::check_account(&state.service, &visitor.by).await?;
    page::page(&LogPage::new(&state, &visitor, LogQuery::default(), Some(checked)).await?)
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Csv,
    JsonLines,
}

/// The entries, newest first, are read while the response is written.
#[get("/audit/export")]
pub(super) async fn export(
    state: web::Data<State>,
    visitor: SignedIn,
    query: Query,
) -> HandlerResult {
    let query: LogQuery = query.read()?;
    let (format, name, content_type) = match query.format.as_str() {
        "csv" => (Format::Csv, "audit-log.csv", "text/csv; charset=utf-8"),
        "jsonl" => (Format::JsonLines, "audit-log.jsonl", "application/jsonl"),
        _ => return Err(Problem::field("format", "must be one of csv, jsonl").into()),
    };
    let filter = audit::Filter {
        limit: STEP,
        ..query.filter()?
    };
    let mut response = HttpResponse::Ok();
    response.content_type(content_type);
    response.insert_header((
        header::CONTENT_DISPOSITION,
        format!("attachment; filename=\"{name}\""),
    ));
    Ok(response.streaming(file(state, visitor.by, filter, format)))
}

/// An error breaks the connection, because an incomplete file must not look complete.
fn file(
    state: web::Data<State>,
    by: RequestActor,
    filter: audit::Filter,
    format: Format,
) -> impl Stream<Item = Result<web::Bytes, Problem>> {
    let first = filter.clone();
    stream::try_unfold(Some((first, true)), move |rest| {
        let (state, by) = (state.clone(), by.clone());
        async move {
            let Some((filter, is_first)) = rest else {
                return Ok(None);
            };
            let found = audit::list(&state.service, &by, filter.clone()).await?;
            let written = match format {
                Format::Csv => csv_lines(&found.entries, is_first).into_bytes(),
                Format::JsonLines => json_lines(&found.entries)?,
            };
            let rest = found.next.map(|next| {
                (
                    audit::Filter {
                        before: Some(next),
                        ..filter
                    },
                    false,
                )
            });
            Ok(Some((web::Bytes::from(written), rest)))
        }
    })
}

fn json_lines(entries: &[Entry]) -> Result<Vec<u8>, Problem> {
    let mut lines = Vec::new();
    for item in entries {
        serde_json::to_writer(&mut lines, &entry(item)).map_err(|_| Problem::internal())?;
        lines.push(b'\n');
    }
    Ok(lines)
}

const COLUMNS: [&str; 11] = [
    "seq",
    "occurred_at",
    "action",
    "actor_type",
    "actor_id",
    "target_type",
    "target_id",
    "request_id",
    "ip",
    "changes",
    "hash",
];

/// Writes CSV (RFC 4180), with a header line on request.
fn csv_lines(entries: &[Entry], with_names: bool) -> String {
    let mut lines = String::new();
    if with_names {
        push_line(&mut lines, &COLUMNS.map(str::to_owned));
    }
    for entry in entries {
        let draft = &entry.draft;
        push_line(
            &mut lines,
            &[
                entry.seq.to_string(),
                Time(draft.occurred_at).iso(),
                draft.action.as_str().to_owned(),
                draft.actor.kind.as_str().to_owned(),
                draft.actor.id.clone(),
                draft.target.kind.as_str().to_owned(),
                draft.target.id.clone(),
                draft.request_id.clone().unwrap_or_default(),
                draft.ip.map(|ip| ip.to_string()).unwrap_or_default(),
                draft.changes.to_string(),
                entry.hash.to_string(),
            ],
        );
    }
    lines
}

/// Quotes a cell that contains the list separator of any locale, not only a comma.
fn push_line(lines: &mut String, cells: &[String; COLUMNS.len()]) {
    for (column, cell) in cells.iter().enumerate() {
        if column > 0 {
            lines.push(',');
        }
        let cell = without_formulas(cell);
        if cell.contains(|letter| letter == '"' || SEPARATORS.contains(&letter)) {
            lines.push('"');
            lines.push_str(&cell.replace('"', "\"\""));
            lines.push('"');
        } else {
            lines.push_str(&cell);
        }
    }
    lines.push_str("\r\n");
}

/// Characters that end a cell in some locale or import dialog of a spreadsheet.
const SEPARATORS: [char; 6] = [',', ';', '\t', '|', '\r', '\n'];
/// Characters that begin a formula, also in the full-width forms that spreadsheets in East Asian locales accept.
const FORMULA: [char; 8] = ['=', '+', '-', '@', '＝', '＋', '－', '＠'];

/// Inserts `'` before everything that a spreadsheet could evaluate as a formula (OWASP, "CSV Injection"): at the
/// beginning, and after each character that separates cells in some locale. A spreadsheet with the list separator `;`
/// splits a quoted cell at it, because for that spreadsheet the quotes are not at the beginning of the cell. Quotes
/// and white space before the formula do not protect.
fn without_formulas(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    // Spreadsheets skip these at the beginning of a cell.
    if text.starts_with(['\t', '\r', '\n']) {
        safe.push('\'');
    }
    for cell in text.split_inclusive(SEPARATORS) {
        let shown = cell.trim_start_matches(|letter: char| {
            letter.is_whitespace() || letter.is_control() || letter == '"'
        });
        if shown.starts_with(FORMULA) {
            safe.push('\'');
        }
        safe.push_str(cell);
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_formula(cell: &str) -> bool {
        let text = cell.trim_start_matches(|letter: char| letter.is_whitespace() || letter == '"');
        text.starts_with(FORMULA) || (cell.starts_with(['\t', '\r']) && !text.is_empty())
    }

    fn cells(file: &str, separator: char) -> Vec<String> {
        let mut reader = csv::ReaderBuilder::new();
        reader
            .has_headers(false)
            .flexible(true)
            .delimiter(u8::try_from(separator).unwrap());
        let rows = reader
            .from_reader(file.as_bytes())
            .into_records()
            .map(|row| row.expect("a row"));
        rows.flat_map(|row| row.iter().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn csv_cell_is_never_a_formula_for_any_list_separator() {
        let texts = [
            "user_7",
            "",
            "a-b",
            "5-3",
            "key=1",
            "=1+1",
            "+1",
            "-2",
            "@x",
            "＝1",
            "\t=1",
            "\r=1",
            "\n=1",
            "\tx",
            " =1",
            "\"=1",
            "a;=1",
            "a,=1",
            "a\t=1",
            "a|=1",
            "a\n=1",
            "a\r\n=1",
            "a; =1",
            "a;\"=1\"",
            "a;;=1",
            ";=1",
            ";",
            "a;-1;@b",
            "x;＋1",
            "a,\t\"=1",
            "{\"name\":\";=cmd|' /C calc'!A0\"}",
            "[\"=a\",\"=b\"]",
            "[1,-2]",
        ];
        for text in texts {
            let mut row: [String; COLUMNS.len()] = Default::default();
            for column in 0..COLUMNS.len() {
                row.fill("x".to_owned());
                row[column] = text.to_owned();
                let mut file = String::new();
                push_line(&mut file, &row);
                for separator in [',', ';', '\t', '|'] {
                    for cell in cells(&file, separator) {
                        assert!(
                            !is_formula(&cell),
                            "{text:?} in column {column} by {separator:?}: {cell:?} of {file}"
                        );
                    }
                }
                // A spreadsheet that ignores quotes.
                for cell in file.split([',', ';', '\t', '|', '\r', '\n']) {
                    assert!(
                        !is_formula(cell),
                        "{text:?} in column {column}: {cell:?} of {file}"
                    );
                }
                assert_eq!(cells(&file, ',').len(), COLUMNS.len(), "{file}");
            }
        }
    }

    #[test]
    fn cell_without_a_formula_is_unchanged() {
        for text in [
            "user_7",
            "2026-01-01T00:00:00Z",
            "a;b",
            "a=1",
            "::1",
            "{\"a\":-1,\"b\":\"=\"}",
            "a\"b",
            "",
        ] {
            assert_eq!(without_formulas(text), text);
        }
        for (text, expected) in [
            ("=1", "'=1"),
            ("a;=1", "a;'=1"),
            ("a; \"=1", "a;' \"=1"),
            ("a;;=1;-2", "a;;'=1;'-2"),
            ("\t=1", "'\t'=1"),
            ("[\"a\",\"=b\"]", "[\"a\",'\"=b\"]"),
        ] {
            assert_eq!(without_formulas(text), expected);
        }
    }

    #[test]
    fn cell_with_any_separator_is_quoted() {
        for (text, expected) in [
            ("a;b", "\"a;b\""),
            ("a,b", "\"a,b\""),
            ("a\tb", "\"a\tb\""),
            ("a\"b", "\"a\"\"b\""),
            ("a\nb", "\"a\nb\""),
            ("a b", "a b"),
        ] {
            let mut row: [String; COLUMNS.len()] = Default::default();
            row[0] = text.to_owned();
            let mut file = String::new();
            push_line(&mut file, &row);
            assert_eq!(file, format!("{expected},,,,,,,,,,\r\n"));
        }
    }
}
