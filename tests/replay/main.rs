//! Replays what a real kernel IPVS decided (`tests/golden`) against single rules, without a packet:
//! schedulers pick by pick, state tables step by step. Whole directors are replayed elsewhere.
//!
//! `ULVS_GOLDEN` names another folder of the same schema.

mod sched;
mod states;

use std::path::PathBuf;

use serde_json::Value;

/// The cases of `topic` whose file name `wanted` accepts, by name. No case at all is a failure: then
/// nothing would be proved.
fn cases(topic: &str, wanted: impl Fn(&str) -> bool) -> Vec<(String, Value)> {
    let root = std::env::var_os("ULVS_GOLDEN").unwrap_or_else(|| "tests/golden".into());
    let folder = PathBuf::from(root).join(topic);
    let files = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("readable folder").path());
    let mut cases: Vec<(String, Value)> = files
        .filter_map(|path| {
            let name = path
                .file_name()?
                .to_str()?
                .strip_suffix(".json")?
                .to_string();
            wanted(&name).then_some((name, path))
        })
        .map(|(name, path)| {
            let text = std::fs::read_to_string(&path).expect("readable case");
            let case = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (name, case)
        })
        .collect();
    assert!(!cases.is_empty(), "no case in {}", folder.display());
    cases.sort_by(|(a, _), (b, _)| a.cmp(b));
    cases
}

/// The steps of a case.
fn steps(case: &Value) -> impl Iterator<Item = &Value> {
    case["steps"].as_array().expect("steps").iter()
}

/// A field that must be there and be text.
fn text<'a>(step: &'a Value, field: &str) -> &'a str {
    let value = step[field].as_str();
    value.unwrap_or_else(|| panic!("no text {field:?} in {step}"))
}
