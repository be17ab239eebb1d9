//! The command `lb`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_user::main()
}
