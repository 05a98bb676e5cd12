//! Rules of the code that nobody should have to remember. Style that is not checked decays.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Lines of code of one file, without comments, blank lines and its tests.
const CODE_LINES_MAX: usize = 400;

/// Columns of a line.
const COLUMNS_MAX: usize = 100;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in the workspace")
}

fn sources() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let crates = ["dataplane", "control", "cni-bridge", "perf", "tests"];
    let mut folders: Vec<PathBuf> = crates.iter().map(|name| root().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// The file without the tests at its end.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

fn is_test(path: &Path) -> bool {
    let path = path.strip_prefix(root()).unwrap_or(path);
    path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs")
}

fn each(check: impl Fn(&Path, &str) -> Vec<String>) {
    let mut faults = Vec::new();
    for path in sources().expect("the sources can be listed") {
        let text = fs::read_to_string(&path).expect("a source is text");
        let name = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        faults.extend(check(&path, &text).into_iter().map(|fault| format!("{name}: {fault}")));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn files_are_short_and_say_what_they_own() {
    each(|path, text| {
        let mut faults = Vec::new();
        let headed =
            text.starts_with("//!") || text.starts_with("#!") || path.ends_with("tests.rs");
        if !headed {
            faults.push("begins without a sentence on what it owns".to_owned());
        }
        let code = without_tests(text).lines().map(str::trim);
        let code = code.filter(|line| !line.is_empty() && !line.starts_with("//")).count();
        if code > CODE_LINES_MAX && !is_test(path) {
            faults.push(format!("{code} lines of code, more than {CODE_LINES_MAX}"));
        }
        let long = text.lines().filter(|line| line.chars().count() > COLUMNS_MAX).count();
        // Quoted frames and messages of tests may be longer.
        if long > 0 && !is_test(path) {
            faults.push(format!("{long} lines of more than {COLUMNS_MAX} columns"));
        }
        faults
    });
}

#[test]
fn unsafe_is_in_the_af_xdp_module_only() {
    each(|path, text| {
        let allowed = path.starts_with(root().join("dataplane/src/xsk"))
            // The counting allocator, and the memory that loom's models share.
            || path.ends_with("dataplane/tests/no_alloc.rs")
            || path.ends_with("dataplane/tests/loom.rs")
            || path.ends_with("tests/tests/tidy.rs");
        let keyword = |line: &&str| {
            let line = line.split("//").next().unwrap_or_default();
            ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                .iter()
                .any(|keyword| line.contains(keyword))
        };
        let faults = text.lines().filter(|_| !allowed).filter(keyword);
        faults.map(|line| format!("unsafe: {}", line.trim())).collect()
    });
}

#[test]
fn nothing_is_left_to_do_in_code() {
    each(|path, text| {
        let marks = ["todo!(", "unimplemented!(", "dbg!(", "FIXME", "XXX"];
        let found = marks.iter().filter(|mark| text.contains(*mark));
        found.filter(|_| !path.ends_with("tidy.rs")).map(|mark| format!("has {mark}")).collect()
    });
}

#[test]
fn every_drop_reason_stands_in_the_architecture() {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect("the file is there");
    let document = read("docs/ARCHITECTURE.md");
    let source = read("dataplane/src/drop.rs");
    let table = source.split("pub const TABLE").nth(1).expect("the table");
    let table = table.split("impl DropReason").next().expect("its end");
    let quoted: Vec<&str> = table.split('"').skip(1).step_by(2).collect();
    assert!(quoted.len() > 80 && quoted.len().is_multiple_of(2), "names and sentences");
    let missing: Vec<_> = quoted
        .chunks(2)
        .filter(|row| !document.contains(&format!("| `{}` | {} |", row[0], row[1])))
        .collect();
    assert!(missing.is_empty(), "docs/ARCHITECTURE.md lacks or words otherwise: {missing:#?}");
}
