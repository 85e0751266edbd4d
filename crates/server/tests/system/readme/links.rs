//! The links, anchors and paths of the documentation.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

/// Directories that contain no documentation of this project.
const SKIPPED: [&str; 4] = [".git", ".venv", "target", "axe"];

fn root() -> PathBuf {
    normalized(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
}

/// Resolves `.` and `..` without the file system.
fn normalized(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                result.pop();
            }
            other => result.push(other),
        }
    }
    result
}

/// Returns the files of the repository with one of these extensions, sorted.
fn files(extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of the repository") {
            let entry = entry.expect("an entry");
            let path = entry.path();
            if entry.file_type().expect("a file type").is_dir() {
                let name = entry.file_name();
                if !SKIPPED.iter().any(|skipped| name == *skipped) {
                    directories.push(path);
                }
            } else if path
                .extension()
                .is_some_and(|own| extensions.iter().any(|extension| own == *extension))
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the lines outside fenced code blocks, with their numbers.
fn prose(markdown: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    markdown
        .lines()
        .enumerate()
        .filter_map(move |(index, line)| {
            let fence = line.trim_start().starts_with("```");
            let shown = !in_code && !fence;
            in_code ^= fence;
            shown.then_some((index + 1, line))
        })
}

/// Removes `code` from a line, as links in code are not links.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

/// Returns the targets of `[text](target)` and `![text](target)` in a line.
fn targets(line: &str) -> Vec<String> {
    let line = without_code(line);
    let after = line.split("](").skip(1);
    after
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.to_owned())
        .collect()
}

/// Returns the anchors of a page, as GitHub and mdBook derive them from the headings.
fn anchors(markdown: &str) -> BTreeSet<String> {
    let mut counts = BTreeMap::<String, usize>::new();
    let mut anchors = BTreeSet::new();
    for (_, line) in prose(markdown) {
        let Some(heading) = line
            .starts_with('#')
            .then(|| line.trim_start_matches('#'))
            .and_then(|rest| rest.strip_prefix(' '))
        else {
            continue;
        };
        let slug: String = heading
            .trim()
            .to_lowercase()
            .chars()
            .filter_map(|character| match character {
                ' ' => Some('-'),
                '-' | '_' => Some(character),
                _ => character.is_alphanumeric().then_some(character),
            })
            .collect();
        let count = counts.entry(slug.clone()).or_default();
        anchors.insert(match *count {
            0 => slug,
            repeated => format!("{slug}-{repeated}"),
        });
        *count += 1;
    }
    anchors
}

/// Returns what is wrong with a link of this page, or `None`.
fn fault(page: &Path, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    // rustdoc checks the links to items in the README of a crate.
    let is_item = target
        .chars()
        .all(|character| character.is_ascii_alphanumeric() || matches!(character, ':' | '_'));
    if is_item && page.starts_with(root().join("crates")) {
        return None;
    }
    let (path, anchor) = match target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (target, None),
    };
    let file = match path {
        "" => page.to_owned(),
        path => normalized(&page.parent()?.join(path)),
    };
    if !file.exists() {
        return Some("the file does not exist".to_owned());
    }
    let docs = root().join("docs");
    if page.starts_with(&docs) && !file.starts_with(&docs) {
        return Some("the published pages are only those of docs/".to_owned());
    }
    let anchor = anchor?;
    (!file.is_file() || !anchors(&read(&file)).contains(anchor))
        .then(|| "the page has no such anchor".to_owned())
}

#[test]
fn links_of_the_documentation_resolve() {
    let mut checked = 0;
    let mut faults = Vec::new();
    for page in files(&["md", "txt"]) {
        for (number, line) in prose(&read(&page)) {
            for target in targets(line) {
                checked += 1;
                if let Some(fault) = fault(&page, &target) {
                    faults.push(format!("{}:{number}: {target}: {fault}", page.display()));
                }
            }
        }
    }
    assert!(checked > 50, "only {checked} links were found");
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn broken_links_are_found() {
    let page = root().join("docs/README.md");
    for target in [
        "no-such-page.md",
        "#no-such-heading",
        "settings.md#no-such-heading",
        "../README.md",
    ] {
        assert!(fault(&page, target).is_some(), "{target}");
    }
    for target in ["settings.md", "settings.md#database", "https://example.com"] {
        assert_eq!(fault(&page, target), None, "{target}");
    }
    let line = "a [page](a.md#b), `[code](c.md)` and ![a picture](d.svg)";
    assert_eq!(targets(line), ["a.md#b", "d.svg"]);
    let page = "# A `b`: c_d\n```\n# no heading\n```\n## A `b`: c_d\n";
    assert_eq!(
        anchors(page).into_iter().collect::<Vec<_>>(),
        ["a-b-c_d", "a-b-c_d-1"]
    );
}

#[test]
fn summary_and_llms_txt_name_every_page() {
    let docs = root().join("docs");
    let named = |file: &str| -> BTreeSet<String> {
        let text = read(&docs.join(file));
        prose(&text)
            .flat_map(|(_, line)| targets(line))
            .filter(|target| !target.contains("://"))
            .collect()
    };
    let pages: BTreeSet<String> = fs::read_dir(&docs)
        .expect("docs/")
        .filter_map(|entry| entry.expect("an entry").file_name().into_string().ok())
        .filter(|name| name.ends_with(".md") && name != "SUMMARY.md")
        .collect();
    assert!(pages.len() > 10, "{pages:?}");
    assert_eq!(named("SUMMARY.md"), pages);
    assert_eq!(named("llms.txt"), pages);
}

/// Returns the paths of pages in a text: `docs/` and a name that ends in `.md`.
fn page_paths(text: &str) -> Vec<String> {
    let after = text.split("docs/").skip(1);
    after
        .map(|rest| {
            let end = |character: char| {
                !(character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.' | '/'))
            };
            rest.split(end).next().unwrap_or_default()
        })
        .filter_map(|name| {
            name.find(".md")
                .map(|end| format!("docs/{}.md", &name[..end]))
        })
        .collect()
}

#[test]
fn pages_that_the_code_names_exist() {
    let own = Path::new(file!());
    let mut named = 0;
    for file in files(&["rs", "html", "toml", "md"]) {
        if file.ends_with(own) || file.ends_with("CHANGELOG.md") {
            continue;
        }
        for path in page_paths(&read(&file)) {
            named += 1;
            assert!(
                root().join(&path).is_file(),
                "{} mentions {path}, which does not exist",
                file.display()
            );
        }
    }
    assert!(named > 5, "only {named} paths were found");
}
