//! Holds ARCHITECTURE.md to the code: who may name what, what is deliberately absent, and that the map is complete.
//!
//! Every rule says both who may and that they do, so that a rule whose subject is gone fails too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of code that a file may have without its tests, blank lines and comments.
const CODE_LINES: usize = 600;

/// Crates that only some may name, and all of those that do: files, or whole modules without `.rs`.
const CRATES: &[(&str, &[&str])] = &[
    ("fuser", &["fuse.rs", "supervisor/session.rs", "wire.rs", "worker.rs"]),
    ("oci_client", &["registry"]),
    ("reqwest", &["registry"]),
    ("tar", &["archive"]),
    ("flate2", &["inflate"]),
    ("globset", &["filter"]),
    ("sigstore_verify", &["signature", "tuf"]),
    ("sigstore_tuf", &["tuf"]),
    ("sigstore_crypto", &["signature"]),
    ("x509_cert", &["signature"]),
    ("ed25519_dalek", &["signature"]),
    ("mzstd", &["inflate"]),
    ("pem", &["signature"]),
    ("prometheus_client", &["metrics"]),
    ("regex_automata", &["policy", "signature"]),
    ("regex_syntax", &["policy", "signature"]),
    ("regorus", &["policy"]),
    ("saphyr_parser", &["policy"]),
];

/// What else only some may write, and all of those that do.
const WORDS: &[(&str, &[&str])] = &[
    // Unverified bytes are let through to be stored, and nowhere else.
    (".admit(", &["store", "verify"]),
    // Nothing but the command line prints; a log goes where it was told to, and a supervisor in the foreground is the command.
    ("stderr()", &["cli", "daemon", "log"]),
    ("stdout()", &["cli", "log"]),
];

/// What nobody writes.
const NEVER: &[&str] = &["println!", "print!", "eprintln!", "eprint!", "dbg!", "todo!", "unimplemented!", "process::exit("];

/// All modules of kitfs that these name (their own submodules aside). Dependencies point one way: from what serves to what it stands on.
const STANDS_ON: &[(&str, &[&str])] = &[
    ("digest", &[]),
    ("verify", &["descriptor", "digest", "limits"]),
    ("archive", &["index", "limits", "path"]),
    ("index", &["digest", "limits", "path", "rehearsal"]),
    ("filter", &["path"]),
    ("signature", &["digest", "json", "limits"]),
    ("tree", &["digest", "filter", "index", "node", "path"]),
    (
        "store",
        &["archive", "clock", "descriptor", "digest", "failure", "index", "inflate", "layer", "limits", "rehearsal", "source", "verify"],
    ),
    ("referrers", &["descriptor", "digest", "failure", "json", "limits", "oci", "policy", "signature", "source", "store", "verify"]),
    ("fs", &["digest", "failure", "fetch", "index", "kit", "layer", "limits", "node", "rehearsal", "store", "tree", "wait"]),
    ("tuf", &["limits", "signature"]),
    ("wire", &[]),
    // What a policy says does not depend on how kits are fetched or shown.
    ("admission", &["digest", "failure", "kit", "layer", "limits", "policy", "referrers", "rehearsal", "signature"]),
    ("policy", &["digest", "limits", "oci", "signature"]),
];

#[test]
fn crates_are_named_where_they_belong_and_nowhere_else() {
    let sources = sources();
    for (name, allowed) in CRATES {
        assert_users(&sources, name, allowed, |code| names_crate(code, name));
    }
}

#[test]
fn words_are_used_where_they_belong_and_nowhere_else() {
    let sources = sources();
    for (word, allowed) in WORDS {
        assert_users(&sources, word, allowed, |code| code.contains(word));
    }
    for word in NEVER {
        assert_users(&sources, word, &[], |code| has_word(code, word));
    }
}

#[test]
fn dependencies_point_one_way() {
    let sources = sources();
    let mut named: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for source in &sources {
        let modules = named.entry(source.module()).or_default();
        modules.extend(modules_named(&source.code).into_iter().filter(|name| name != source.module()));
    }
    for (module, expected) in STANDS_ON {
        let found: Vec<&str> = named[module].iter().map(String::as_str).collect();
        assert_eq!(found, *expected, "modules that `{module}` names");
    }
    let above: Vec<_> = named.iter().filter(|(_, modules)| modules.contains("cli")).collect();
    assert!(above.is_empty(), "nothing in the library stands above the command line: {above:?}");
    assert!(
        sources.iter().any(|source| source.path == "main.rs" && source.code.contains("kitfs::cli::run()")),
        "the program is the command line"
    );
    let transports: Vec<_> = named
        .iter()
        .filter(|(_, modules)| ["registry", "layout"].iter().any(|transport| modules.contains(*transport)))
        .map(|(module, _)| *module)
        .collect();
    assert_eq!(transports, ["source"], "who knows the kinds of places that blobs come from");
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    for source in sources() {
        let lines = source.code.lines().filter(|line| !line.trim().is_empty()).count();
        assert!(lines > 0, "src/{}: no code; the counting is broken", source.path);
        assert!(lines <= CODE_LINES, "src/{}: {lines} lines of code, at most {CODE_LINES}", source.path);
        assert!(source.text.starts_with("//! "), "src/{}: no module documentation", source.path);
    }
}

#[test]
fn the_map_has_every_module_and_no_other() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let map = section(&map, "Code map");
    // Modules of the crate stand in the first column; files below them are mentioned in the second.
    let rows: Vec<(&str, &str)> = map.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" | ")).collect();
    let on_the_map: BTreeSet<&str> =
        rows.iter().flat_map(|(modules, _)| modules.split(['`', ',', ' '])).filter(|name| !name.is_empty()).collect();
    let sources = sources();
    let all: BTreeSet<&str> = sources.iter().map(Source::module).filter(|name| !["lib", "main"].contains(name)).collect();
    assert_eq!(all.difference(&on_the_map).collect::<Vec<_>>(), Vec::<&&str>::new(), "not on the map");
    assert_eq!(on_the_map.difference(&all).collect::<Vec<_>>(), Vec::<&&str>::new(), "on the map, but not there");
    let quoted = rows.iter().flat_map(|(_, text)| text.split('`').skip(1).step_by(2));
    let files: Vec<&str> = quoted.filter(|word| word.ends_with(".rs") && word.contains('/')).collect();
    assert!(!files.is_empty(), "the map mentions files");
    for file in files {
        assert!(sources.iter().any(|source| source.path == file), "src/{file} is on the map, but not there");
    }
}

#[test]
fn the_library_is_nothing_but_its_modules() {
    let sources = sources();
    let library = sources.iter().find(|source| source.path == "lib.rs").expect("src/lib.rs");
    let mut declared = BTreeSet::new();
    for line in library.code.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let module = line.trim_start_matches("pub(crate) ").trim_start_matches("pub ").strip_prefix("mod ");
        let module = module.and_then(|module| module.strip_suffix(';')).unwrap_or_else(|| panic!("src/lib.rs: {line}"));
        declared.insert(module.to_owned());
    }
    let there: BTreeSet<_> =
        sources.iter().map(|source| source.module().to_owned()).filter(|name| name != "lib" && name != "main").collect();
    assert_eq!(declared, there);
}

#[test]
fn every_limit_is_used() {
    let sources = sources();
    let limits = sources.iter().find(|source| source.path == "limits.rs").expect("src/limits.rs");
    let names: Vec<&str> = limits.code.lines().filter_map(|line| line.strip_prefix("pub const ")?.split(':').next()).collect();
    assert!(names.len() > 50, "{} limits; the search for them is broken", names.len());
    for name in names {
        let used = sources.iter().any(|source| source.path != "limits.rs" && has_word(&source.code, name));
        assert!(used, "limits::{name} limits nothing");
    }
}

#[test]
fn the_tests_and_cases_that_attacks_are_defeated_by_are_there() {
    let attacks = fs::read_to_string(root().join("SECURITY.md")).expect("SECURITY.md");
    let rows: Vec<&str> = section(&attacks, "Attacks").lines().filter(|line| line.starts_with("| ") && !line.starts_with("| |")).collect();
    assert_eq!(rows.len(), 28, "attacks");
    for (number, row) in rows.iter().enumerate() {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [count, .., tests] = cells[..] else { panic!("{row}") };
        assert_eq!(count, (number + 1).to_string(), "{row}");
        let (tests, fixtures) = tests.split_once("; [").unwrap_or((tests, "]"));
        let mut names = tests.split(", ").map(|name| name.trim_matches('`')).peekable();
        assert!(names.peek().is_some_and(|name| name.contains("::")), "an attack without a test: {row}");
        for name in names {
            assert!(is_test(name), "`{name}` is no test, in: {row}");
        }
        for case in fixtures.trim_end_matches(']').split(", ").filter(|case| !case.is_empty()) {
            assert!(root().join("tests/fixtures/signed").join(case).join("case.json").exists(), "`{case}` is no case, in: {row}");
        }
    }
    assert!(is_test("architecture::every_limit_is_used") && !is_test("architecture::every_limit"));
    assert!(!is_test("policies::every_limit_is_used") && !is_test("architecture::is_test"));
}

/// Whether there is a test of this name: the modules say its file, below `src/` or `tests/`.
fn is_test(name: &str) -> bool {
    let (modules, function) = name.rsplit_once("::").unwrap_or(("", name));
    let path = modules.replace("::", "/");
    let inner = path.trim_end_matches("/tests");
    let files = [format!("src/{path}.rs"), format!("src/{inner}.rs"), format!("tests/{path}.rs"), format!("tests/{path}/main.rs")];
    files.iter().filter_map(|file| fs::read_to_string(root().join(file)).ok()).any(|text| {
        let Some((before, _)) = text.split_once(&format!("fn {function}(")) else { return false };
        let item = before.rsplit("\n\n").next().unwrap_or(before);
        item.contains("#[test]") || item.contains("#[tokio::test") || is_in_both_modes(&text, function)
    })
}

/// Whether a test is in the list of those that are run in both modes.
fn is_in_both_modes(text: &str, function: &str) -> bool {
    text.split_once("in_both_modes!(").is_some_and(|(_, list)| list.split(')').next().is_some_and(|list| has_word(list, function)))
}

#[test]
fn what_a_reader_of_code_sees_is_code() {
    let code =
        code_of("let a = \"// no\\\"\"; // fuser::x\nlet b = r#\"tar::\"#; /* a /* b */ c */ let c = '\"'; fn f<'a>(x: &'a str) {}\n");
    assert_eq!(code, "let a = \"\"; \nlet b = \"\";  let c = ' '; fn f<'a>(x: &'a str) {}\n");
    assert!(
        names_crate("use fuser::Session;", "fuser") && names_crate("x: fuser::Reply", "fuser") && names_crate("use fuser as f;", "fuser")
    );
    assert!(!names_crate("use crate::fuser_like::X; defuser::y", "fuser") && !names_crate("let fuser = 1;", "fuser"));
    assert_eq!(
        modules_named("use crate::a::B; use crate::{c, d::{self, E}}; crate::f::g()").into_iter().collect::<Vec<_>>(),
        ["a", "c", "d", "f"]
    );
    let tested = "fn a() {}\n#[cfg(test)]\nmod fixtures;\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n";
    assert_eq!(without_tests(tested), ("fn a() {}\nfn c() {}\n".to_owned(), vec!["fixtures".to_owned()]));
}

/// A file of `src/` that is no test.
struct Source {
    /// Below `src/`.
    path: String,
    text: String,
    /// Without tests, comments and what is in quotes.
    code: String,
}

impl Source {
    /// The module of the crate's root that it is or belongs to.
    fn module(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap_or_default()
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    let mut sources = Vec::new();
    let mut tests = BTreeSet::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).expect("a source");
            let name = path.strip_prefix(&src).expect("below").to_str().expect("ASCII").to_owned();
            let (code, test_files) = without_tests(&code_of(&text));
            let below = if ["lib.rs", "main.rs"].contains(&name.as_str()) { "" } else { name.trim_end_matches(".rs") };
            tests.extend(test_files.iter().map(|module| Path::new(below).join(format!("{module}.rs"))));
            sources.push(Source { path: name, text, code });
        }
    }
    sources.retain(|source| !tests.contains(Path::new(&source.path)));
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.len() > 50, "{} sources; the search for them is broken", sources.len());
    sources
}

fn assert_users(sources: &[Source], what: &str, allowed: &[&str], uses: impl Fn(&str) -> bool) {
    let name = |source: &Source| if allowed.contains(&source.module()) { source.module().to_owned() } else { source.path.clone() };
    let users: BTreeSet<String> = sources.iter().filter(|source| uses(&source.code)).map(name).collect();
    assert_eq!(users.iter().map(String::as_str).collect::<Vec<_>>(), allowed, "files and modules below src/ that use `{what}`");
}

/// The text between a heading and the next one of the same level.
fn section<'t>(text: &'t str, heading: &str) -> &'t str {
    let (_, rest) = text.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section `{heading}`"));
    rest.split("\n## ").next().unwrap_or(rest)
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// True if `word` stands in `code` and is not the end or the beginning of a longer one.
fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !(before.is_some_and(is_word) || word.ends_with(is_word) && after.is_some_and(is_word))
    })
}

fn names_crate(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    let of_the_crate = |at: usize| {
        let before = &code[..at];
        !before.ends_with(|letter: char| is_word(letter) || letter == ':')
    };
    code.match_indices(&path).any(|(at, _)| of_the_crate(at)) || has_word(code, &format!("use {name}"))
}

/// The names after `crate::`, those in braces included.
fn modules_named(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, rest) in code.match_indices("crate::").map(|(at, found)| (at, &code[at + found.len()..])) {
        let Some(list) = rest.strip_prefix('{') else {
            names.extend(first_word(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = true;
        for (at, letter) in list.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                _ if start && is_word(letter) => {
                    names.extend(first_word(&list[at..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    names
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|letter| is_word(*letter)).collect();
    // Types and macros of the root are none of its modules.
    word.starts_with(char::is_lowercase).then_some(word)
}

/// `code` without what is behind `#[cfg(test)]`, and the files that are.
fn without_tests(code: &str) -> (String, Vec<String>) {
    let mut kept = String::new();
    let mut files = Vec::new();
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        if line != "#[cfg(test)]" {
            kept.extend([line, "\n"]);
            continue;
        }
        // rustfmt puts the end of an item at the beginning of a line.
        let item = lines.by_ref().find(|line| !line.starts_with("#["));
        match item {
            Some(item) if item.ends_with(';') => {
                let module = item.trim_start_matches("pub(crate) ").strip_prefix("mod ").and_then(|name| name.strip_suffix(';'));
                files.extend(module.map(str::to_owned));
            }
            _ => drop(lines.by_ref().find(|line| line.starts_with('}'))),
        }
    }
    (kept, files)
}

/// `text` without comments and without what is in quotes.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let after_word = code.ends_with(is_word);
        if rest.starts_with("//") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if rest.starts_with("/*") {
            rest = after_block_comment(rest);
        } else if let Some(hashes) = raw_string(rest).filter(|_| !after_word) {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = &rest[rest.find('"').map_or(0, |at| at + 1)..];
            rest = body.find(&end).map_or("", |at| &body[at + end.len()..]);
            code.push_str("\"\"");
        } else if letter == '"' {
            rest = after_quoted(&rest[1..], '"');
            code.push_str("\"\"");
        } else if letter == '\'' && is_character(rest) {
            rest = after_quoted(&rest[1..], '\'');
            code.push_str("' '");
        } else {
            code.push(letter);
            rest = &rest[letter.len_utf8()..];
        }
    }
    code
}

/// How many `#` a raw string has that begins here.
fn raw_string(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("br").or_else(|| text.strip_prefix("cr")).or_else(|| text.strip_prefix('r'))?;
    let hashes = rest.bytes().take_while(|byte| *byte == b'#').count();
    rest[hashes..].starts_with('"').then_some(hashes)
}

/// A quoted character, and not a lifetime.
fn is_character(text: &str) -> bool {
    let mut letters = text.chars().skip(1);
    letters.next() == Some('\\') || letters.next() == Some('\'')
}

fn after_quoted(text: &str, quote: char) -> &str {
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if letter == quote => return &text[at + 1..],
            _ => {}
        }
    }
    ""
}

fn after_block_comment(text: &str) -> &str {
    let mut depth = 0;
    let mut rest = text;
    loop {
        if let Some(inner) = rest.strip_prefix("/*") {
            (depth, rest) = (depth + 1, inner);
        } else if let Some(outer) = rest.strip_prefix("*/") {
            (depth, rest) = (depth - 1, outer);
            if depth == 0 {
                return rest;
            }
        } else {
            let Some(letter) = rest.chars().next() else { return "" };
            rest = &rest[letter.len_utf8()..];
        }
    }
}
