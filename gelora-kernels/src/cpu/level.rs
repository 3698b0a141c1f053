//! Levels of vector instructions, and the level in use.

use std::fmt;
use std::sync::OnceLock;

/// The environment variable that lowers the level: `portable`, `avx2`, `avx512` or `avx512bf16`. It never raises the
/// level above that of the machine.
pub const VARIABLE: &str = "GELORA_CPU";

/// A level of vector instructions. Each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Level {
    /// The instructions of the compiler's target.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with products of bf16 pairs (AVX-512 BF16).
    Avx512Bf16,
}

impl Level {
    const ALL: [(Level, &str); 4] = [
        (Level::Portable, "portable"),
        (Level::Avx2, "avx2"),
        (Level::Avx512, "avx512"),
        (Level::Avx512Bf16, "avx512bf16"),
    ];

    fn of_machine() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            return match (avx2, avx512, is_x86_feature_detected!("avx512bf16")) {
                (true, true, true) => Level::Avx512Bf16,
                (true, true, false) => Level::Avx512,
                (true, false, _) => Level::Avx2,
                (false, ..) => Level::Portable,
            };
        }
        #[allow(unreachable_code)] // reachable on other architectures than x86-64
        Level::Portable
    }

    /// The level that [`VARIABLE`] asks for; None if it is not set.
    ///
    /// # Errors
    /// If the variable has none of the four names.
    pub fn asked_for() -> Result<Option<Self>, String> {
        let Some(value) = std::env::var_os(VARIABLE) else { return Ok(None) };
        match Self::ALL.iter().find(|(_, name)| value == *name) {
            Some((level, _)) => Ok(Some(*level)),
            None => {
                Err(format!("{VARIABLE} = {}: expected portable, avx2, avx512 or avx512bf16", value.to_string_lossy()))
            }
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Portable => "portable vectors",
            Level::Avx2 => "AVX2",
            Level::Avx512 => "AVX-512",
            Level::Avx512Bf16 => "AVX-512 with bf16",
        })
    }
}

/// The level in use: that of the machine, or a lower one from [`VARIABLE`]. An invalid value of the variable is
/// ignored.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let machine = Level::of_machine();
        Level::asked_for().ok().flatten().map_or(machine, |asked| asked.min(machine))
    })
}

/// Compiles a function once for each level of vector instructions, and calls the one for [`level`].
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)] // slices and numbers vectorize better than structures
        $vis fn $name($($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body($($arg: $type),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $type),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $type),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match $crate::cpu::level() {
                    // SAFETY: the level is never above what the machine has.
                    $crate::cpu::Level::Avx512 | $crate::cpu::Level::Avx512Bf16 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::cpu::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::cpu::Level::Portable => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use vectorized;
