//! The packet path over host frames and tables: the cases that any carrier of it has to fulfil, and what only the host
//! can show.

mod bookkeeping;
mod fuzz;
mod pairs;
mod parts;
mod races;
mod random;

use core::convert::Infallible;

use crate::host::cases;

macro_rules! test_every_case {
    ($($rule:ident),* $(,)?) => {
        $(
            #[test]
            fn $rule() {
                for case in cases::$rule() {
                    case.run(|_, _| Ok::<_, Infallible>(())).expect("nothing follows");
                }
            }
        )*
    };
}

crate::every_case!(test_every_case);
