use proptest::prelude::*;
use saphyr::{LoadableYamlNode as _, MarkedYaml, Scalar, YamlData};

use super::*;
use crate::fixtures;
use crate::oci::Manifest;

fn rendered(json: &str) -> String {
    let config = Config::from_json(&Json::parse(json.as_bytes()).expect(json)).expect(json);
    String::from_utf8(render(&config).to_vec()).expect("UTF-8")
}

fn parameters(json: &Json) -> String {
    yaml::document(&Yaml::Map(vec![("p", free(json))]))
}

#[test]
fn every_fixture_has_the_kitfile_that_kit_wrote() {
    let mut compared = 0;
    for case in fixtures::cases("kits") {
        let manifest = Manifest::parse(&case.manifest()).expect(&case.name);
        let json = match manifest.annotations.get("ml.kitops.modelkit.kitfile") {
            Some(annotation) => Json::parse(annotation.as_bytes()),
            None if manifest.config.media_type.starts_with("application/vnd.kitops.") => Json::parse(&case.blob(&manifest.config)),
            None => continue,
        };
        let config = Config::from_json(&json.expect(&case.name)).expect(&case.name);
        let Ok(expected) = std::fs::read_to_string(case.folder.join("Kitfile")) else { continue };
        assert_eq!(String::from_utf8_lossy(&render(&config)), expected, "{}", case.name);
        compared += 1;
    }
    assert!(compared >= 30, "{compared}");
}

#[test]
fn empty_fields_are_left_out_as_kit_leaves_them_out() {
    for (json, expected) in [
        ("{}", "manifestVersion: \"\"\n"),
        (r#"{"manifestVersion":"1.0.0","package":{}}"#, "manifestVersion: 1.0.0\n"),
        (r#"{"manifestVersion":"1.0.0","package":{"authors":[]},"code":[]}"#, "manifestVersion: 1.0.0\n"),
        (r#"{"manifestVersion":"1","model":{},"package":null}"#, "manifestVersion: \"1\"\nmodel: {}\n"),
        (
            r#"{"manifestVersion":"1.0.0","code":[{},null],"docs":[{}]}"#,
            "manifestVersion: 1.0.0\ncode:\n  - {}\n  - {}\ndocs:\n  - path: \"\"\n",
        ),
        (
            r#"{"manifestVersion":"1.0.0","model":{"parameters":{}},"datasets":[{"parameters":[]}]}"#,
            "manifestVersion: 1.0.0\nmodel:\n  parameters: {}\ndatasets:\n  - parameters: []\n",
        ),
        (
            r#"{"manifestVersion":"1.0.0","unknown":1,"mcpServers":[{"name":"tool","path":"p.mcpb"}],"prompts":[{"path":"a"}]}"#,
            "manifestVersion: 1.0.0\nprompts:\n  - path: a\nmcpServers:\n  - name: tool\n    path: p.mcpb\n",
        ),
    ] {
        assert_eq!(rendered(json), expected, "{json}");
    }
}

#[test]
fn numbers_are_printed_as_go_prints_them() {
    for (json, expected) in [
        ("1000000", "1e+06"),
        ("999999", "999999"),
        ("100000", "100000"),
        ("1234567", "1.234567e+06"),
        ("123456.75", "123456.75"),
        ("9007199254740993", "9.007199254740992e+15"),
        ("-0", "-0"),
        ("0.0", "0"),
        ("1.50", "1.5"),
        ("0.0001", "0.0001"),
        ("0.00001", "1e-05"),
        ("1e21", "1e+21"),
        ("1e100", "1e+100"),
        ("5e-324", "5e-324"),
        ("-593740313593531.25", "-5.937403135935312e+14"),
        ("18446744073709551615", "1.8446744073709552e+19"),
        ("123456789012345678901234567890", "1.2345678901234568e+29"),
    ] {
        assert_eq!(parameters(&Json::parse(json.as_bytes()).expect(json)), format!("p: {expected}\n"), "{json}");
    }
}

/// As go-yaml 3.0.1 wrote them.
#[test]
fn texts_are_quoted_as_go_yaml_quotes_them() {
    for (text, expected) in [
        ("2024-1-2 3:4:5.", "2024-1-2 3:4:5."),
        ("2024-1-2   3:4:5", "\"2024-1-2   3:4:5\""),
        ("2023-02-29", "2023-02-29"),
        ("2024-02-29T1:2:3,25+24:60", "\"2024-02-29T1:2:3,25+24:60\""),
        ("0b-1", "\"0b-1\""),
        ("-0b-1", "-0b-1"),
        ("-0x8000000000000000", "\"-0x8000000000000000\""),
        ("-0x8000000000000001", "-0x8000000000000001"),
        ("0x1FFFFFFFFFFFFFFFFF", "0x1FFFFFFFFFFFFFFFFF"),
        ("1e400", "1e400"),
        (".5_0", "\".5_0\""),
        (".5_", ".5_"),
        ("1:59.", "\"1:59.\""),
        ("1:60", "1:60"),
        ("a\u{2028}b", "'a\u{2028}  b'"),
        ("\n", "|2+\n"),
        ("a\n\n", "|+\n  a\n\n"),
        ("a \nb", "\"a \\nb\""),
        ("\ta\nb", "|-\n  \ta\n  b"),
        ("\u{feff}a b", "\"\\uFEFF\\x61\\x20\\x62\""),
        ("\u{1f916}", "\"\\U0001F916\""),
    ] {
        let end = if expected.ends_with('\n') { "" } else { "\n" };
        assert_eq!(parameters(&Json::String(text.to_owned())), format!("p: {expected}{end}"), "{text:?}");
    }
}

#[test]
fn keys_are_in_natural_order() {
    let keys = ["a10", "a9", "a09", "b", "a", "1", "", "Z", "z", "é", "_", "a-1", "a1b", "a1", "00", "0"];
    let sorted = yaml::sorted(keys.iter().map(|key| (*key, Yaml::Null)).collect());
    let order: Vec<&str> = sorted.into_iter().map(|(key, _)| key).collect();
    assert_eq!(order, ["", "_", "0", "00", "1", "Z", "a", "a-1", "a1", "a1b", "a9", "a09", "a10", "b", "z", "é"]);
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{0,12}",
        "[a-z0-9_.:+-]{0,9}",
        r"[a #:\-?,\[\]{}'\x22\\&*!|>%@`\t\n\r\u{85}\u{a0}\u{2028}\u{2029}\u{feff}\u{1f916}\x00\x1b\x7f]{0,8}",
        "[kK]{126,131}",
    ]
}

fn json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        any::<i64>().prop_map(|number| Json::Number(number.into())),
        any::<f64>().prop_filter_map("finite", |number| serde_json::Number::from_f64(number).map(Json::Number)),
        text().prop_map(Json::String),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Json::Array),
            proptest::collection::btree_map(text(), inner, 0..5).prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

/// True for what go-yaml itself does not read back as it wrote it: line feeds at the start of a literal, and the line separators of
/// YAML 1.1, which YAML 1.2 takes for ordinary characters.
fn is_lossy(json: &Json) -> bool {
    let lossy = |text: &str| text.starts_with('\n') || text.contains(['\u{2028}', '\u{2029}']);
    match json {
        Json::String(text) => lossy(text),
        Json::Array(elements) => elements.iter().any(is_lossy),
        Json::Object(entries) => entries.iter().any(|(key, value)| lossy(key) || is_lossy(value)),
        _ => false,
    }
}

fn assert_same(yaml: &MarkedYaml<'_>, json: &Json) {
    match (&yaml.data, json) {
        (YamlData::Value(Scalar::Null), Json::Null) => {}
        (YamlData::Value(Scalar::Boolean(got)), Json::Bool(expected)) => assert_eq!(got, expected),
        (YamlData::Value(Scalar::Integer(got)), Json::Number(expected)) => assert_eq!(*got as f64, expected.as_f64().expect("a float")),
        (YamlData::Value(Scalar::FloatingPoint(got)), Json::Number(expected)) => {
            assert_eq!(got.into_inner(), expected.as_f64().expect("a float"));
        }
        (YamlData::Value(Scalar::String(got)), Json::String(expected)) => assert_eq!(got, expected),
        (YamlData::Sequence(got), Json::Array(expected)) => {
            assert_eq!(got.len(), expected.len());
            got.iter().zip(expected).for_each(|(got, expected)| assert_same(got, expected));
        }
        (YamlData::Mapping(got), Json::Object(expected)) => {
            assert_eq!(got.len(), expected.len());
            for (key, value) in expected {
                let (_, got) = got.iter().find(|(got, _)| got.data.as_str() == Some(key)).unwrap_or_else(|| panic!("{key:?}"));
                assert_same(got, value);
            }
        }
        (got, expected) => panic!("{got:?} for {expected:?}"),
    }
}

proptest! {
    #[test]
    fn a_yaml_library_reads_the_value_that_was_written(value in json().prop_filter("lossy", |value| !is_lossy(value))) {
        let document = parameters(&value);
        let read = MarkedYaml::load_from_str(&document).unwrap_or_else(|error| panic!("{error}\n{document}"));
        let YamlData::Mapping(root) = &read[0].data else { panic!("{document}") };
        assert_same(root.iter().next().expect("one entry").1, &value);
    }

    #[test]
    fn hostile_keys_are_sorted_without_a_panic(keys in proptest::collection::vec("[a0-9٣é_]{0,6}", 0..60)) {
        let count = keys.len();
        prop_assert_eq!(yaml::sorted(keys.iter().map(|key| (key.as_str(), Yaml::Null)).collect()).len(), count);
    }
}
