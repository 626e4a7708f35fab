//! Common parts of the 64-bit numbers that are types: how they are shown, and how places are counted with.

/// Shows a number for people by the first format and for debugging by the second.
macro_rules! shown {
    ($name:ident, $display:expr, $debug:expr) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, $display, self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, $debug, self.0)
            }
        }
    };
}

/// Makes a number a place in a sequence: a place and a count make a place, and two places a count.
macro_rules! place {
    ($name:ident) => {
        /// So many further.
        impl std::ops::Add<u64> for $name {
            type Output = Self;

            fn add(self, count: u64) -> Self {
                Self(self.0 + count)
            }
        }

        /// The count between two places, of which the right one is not the later.
        impl std::ops::Sub for $name {
            type Output = u64;

            fn sub(self, earlier: Self) -> u64 {
                self.0 - earlier.0
            }
        }
    };
}

pub(crate) use {place, shown};
