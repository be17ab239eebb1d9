//! The rules of the house that text shows: each an absence, with the files that it does not hold for.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// A word that no line of these directories may have, comments apart.
struct Rule {
    rule: &'static str,
    /// Directories and files that the rule is about.
    within: &'static [&'static str],
    /// Whole words: `aya` is not found in `aya_ebpf`, so both are listed.
    words: &'static [&'static str],
    /// Files, or directories ending in `/`, that the rule leaves out.
    except: &'static [&'static str],
}

const CRATES: &[&str] = &["lb-common", "lb-ebpf", "lb-user", "xtask", "tests"];

const RULES: &[Rule] = &[
    Rule {
        rule: "unsafe only in the files that own packet memory, map memory or layouts",
        within: CRATES,
        words: &["unsafe"],
        except: &[
            "lb-common/src/backend.rs",
            "lb-common/src/control.rs",
            "lb-common/src/datagram.rs",
            "lb-common/src/flow.rs",
            "lb-common/src/service.rs",
            "lb-common/src/table.rs",
            "lb-common/src/verdict.rs",
            "lb-common/src/vlan.rs",
            "lb-ebpf/src/frame.rs",
            "lb-ebpf/src/host.rs",
            "lb-ebpf/src/bin/",
            "lb-user/src/batch.rs",
            "lb-user/src/table.rs",
        ],
    },
    Rule {
        rule: "a lint is never allowed, only expected, with a reason",
        within: CRATES,
        words: &["#[allow(", "#![allow("],
        except: &[],
    },
    Rule {
        rule: "the packet path knows no aya: it runs on the host too",
        within: &["lb-ebpf/src"],
        words: &["aya", "aya_ebpf", "aya_log_ebpf"],
        except: &["lb-ebpf/src/bin/"],
    },
    Rule {
        rule: "lb-common touches no packet, map or clock",
        within: &["lb-common/src"],
        words: &["aya_ebpf", "aya_log_ebpf", "Instant", "SystemTime"],
        except: &[],
    },
    Rule {
        rule: "the names of the balancer's maps stand in one file of the kernel's side",
        within: &["lb-ebpf/src"],
        words: &["#[map]", "#[map("],
        except: &["lb-ebpf/src/bin/lb/maps.rs", "lb-ebpf/src/bin/bench/"],
    },
    Rule {
        rule: "userspace's map names stand in one file",
        within: &["lb-user/src"],
        words: &["map_mut", "take_map", "from_pin"],
        except: &["lb-user/src/maps.rs", "lb-user/src/maps/", "lb-user/src/links.rs"],
    },
    Rule {
        rule: "model and plan do no input or output",
        within: &["lb-user/src/model.rs", "lb-user/src/plan.rs"],
        words: &["aya", "tokio", "std::fs", "std::net::TcpStream", "std::process", "println!", "eprintln!"],
        except: &[],
    },
];

/// The lines that break a rule, as `file:line: rule`.
pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for rule in RULES {
        for directory in rule.within {
            for file in rust_files(&root.join(directory))? {
                let shown = file.strip_prefix(root).unwrap_or(&file).display().to_string();
                // This file names the words.
                if shown == "xtask/src/lint/tidy.rs" || exempt(rule, &shown) {
                    continue;
                }
                let text = fs::read_to_string(&file).with_context(|| format!("cannot read {shown}"))?;
                broken.extend(breaches(rule, &text).map(|line| format!("{shown}:{line}: {}", rule.rule)));
            }
        }
    }
    Ok(broken)
}

fn exempt(rule: &Rule, file: &str) -> bool {
    rule.except
        .iter()
        .any(|except| if except.ends_with('/') { file.starts_with(except) } else { file == *except })
}

/// The numbers of the lines that have one of the words.
fn breaches(rule: &Rule, text: &str) -> impl Iterator<Item = usize> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| rule.words.iter().any(|word| has_word(without_comment(line), word)))
        .map(|(index, _)| index + 1)
}

fn without_comment(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

fn has_word(line: &str, word: &str) -> bool {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].chars().next_back().is_some_and(in_word);
        let after = line[start + word.len()..].chars().next().is_some_and(in_word);
        // Only a word that begins or ends with a letter can run on into its neighbour.
        !(before && word.starts_with(in_word) || after && word.ends_with(in_word))
    })
}

fn rust_files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(path.is_file().then(|| path.to_owned()).into_iter().collect());
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_keep_the_rules() {
        let root = crate::workspace::root();
        assert_eq!(check(root).expect("the sources can be read"), Vec::<String>::new());
    }

    #[test]
    fn a_word_is_found_only_whole_and_outside_of_comments() {
        let table = [
            ("unsafe { read() }", "unsafe", true),
            ("#![deny(unsafe_op_in_unsafe_fn)]", "unsafe", false),
            ("read() // unsafe elsewhere", "unsafe", false),
            ("use aya_ebpf::maps;", "aya", false),
            ("use aya::maps;", "aya", true),
            ("#[allow(dead_code)]", "#[allow(", true),
            ("    #[map]", "#[map]", true),
        ];
        for (line, word, found) in table {
            assert_eq!(has_word(without_comment(line), word), found, "{word} in {line}");
        }
    }
}
