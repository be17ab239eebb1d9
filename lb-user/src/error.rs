//! How failures reach the user: one sentence on stderr, and an exit status.

use std::process::ExitCode;

/// What was asked for was not understood: exit status 2.
pub(crate) const USAGE: u8 = 2;

/// Says what went wrong, with all that led to it, and gives the exit status for it.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("lb: {}", sentence(error));
    ExitCode::FAILURE
}

/// The chain of causes in one line. What a cause repeats of the one above it is left out.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        let cause = cause.split_whitespace().collect::<Vec<_>>().join(" ");
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_make_one_line_without_repetition() {
        let error = anyhow::anyhow!("no such\n  device").context("no such device").context("cannot attach");
        assert_eq!(sentence(&error), "cannot attach: no such device");
    }
}
