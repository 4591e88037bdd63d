//! Intel AMX on stable Rust: permission, the shapes of tiles, and the two products of attention, [scores] and [values].

#[macro_use]
mod asked;
mod scores;
mod values;

pub(crate) use asked::Asked;
pub(crate) use scores::{Piece, scores_2x2, scores_4x1};
pub(crate) use values::{
    COLUMNS_OF_FEW, SPREAD, ValueRows, values_1x4, values_few, values_in_place,
};

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv, CpuidResult};
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;
/// bf16 numbers of a tile row.
pub(crate) const DEPTH: usize = 32;

/// A tile in memory of our own: 16 rows of 64 bytes.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Tile<T>(pub(crate) [[T; 16]; ROWS]);

/// Bytes from a row of a [`Tile`] to the next.
const TILE_STRIDE: usize = 64;

/// A cache line that is written and never read, see [`Tiles::keep_awake`].
#[derive(Debug)]
#[repr(align(64))]
struct Line(UnsafeCell<[u8; 64]>);

/// Proof that the processor has AMX with bf16 and AVX-512 with bf16, and that the system lets this
/// process use them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amx(());

impl Amx {
    /// Asks the processor and, once per process, the system.
    pub(crate) fn detect() -> Result<Amx, &'static str> {
        static FOUND: OnceLock<Result<(), &str>> = OnceLock::new();
        FOUND.get_or_init(permit).map(Amx)
    }

    /// Configures the calling thread's tiles, until the guard is dropped.
    pub(crate) fn tiles(self) -> Tiles {
        let tiles = Tiles {
            shape: Cell::new(Shape::Whole),
            line: Line(UnsafeCell::new([0; 64])),
            _thread: PhantomData,
        };
        tiles.configure(Shape::Whole);
        tiles
    }
}

/// Query rows that a tile of one head has room for: sixteen, or fewer where there are no more.
///
/// Scores of four rows lie side by side for four positions, so that weighing takes a quarter of the vectors, and one
/// product of values does what takes two with sixteen rows, see [`values_few`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Height {
    Four,
    Eight,
    Sixteen,
}

impl Height {
    /// The least that has room for so many rows; for more than sixteen there are several tiles.
    pub(crate) fn of(rows: usize) -> Height {
        match rows {
            ..=4 => Height::Four,
            5..=8 => Height::Eight,
            _ => Height::Sixteen,
        }
    }

    /// Whether one product of values does even and odd columns, see [`values_few`].
    pub(crate) fn is_few(self) -> bool {
        self != Height::Sixteen
    }

    pub(crate) const fn rows(self) -> usize {
        match self {
            Height::Four => 4,
            Height::Eight => 8,
            Height::Sixteen => ROWS,
        }
    }
}

/// What the eight tiles are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// 16 rows of 64 bytes.
    Whole,
    /// So too, but tiles 0 to 3, the scores, and 6 and 7, the queries, have as many columns of 4 bytes as there are
    /// query rows.
    Scores(Height),
    /// As [`Shape::Whole`], but tiles 0 to 5, sums and probabilities, have two rows for each query row, of eight at most.
    Values(Height),
}

/// What the instruction reads.
#[repr(C, align(64))]
struct Config {
    bytes: [u8; 64],
}

impl Config {
    /// Tiles of so many rows, and of so many bytes a row.
    const fn new(rows: [u8; 8], bytes_per_row: [u8; 8]) -> Config {
        let mut bytes = [0; 64];
        bytes[0] = 1; // the only palette: eight tiles of at most 16 rows of 64 bytes
        let mut tile = 0;
        while tile < 8 {
            bytes[16 + 2 * tile] = bytes_per_row[tile]; // little-endian u16
            bytes[48 + tile] = rows[tile];
            tile += 1;
        }
        Config { bytes }
    }

    const fn scores(height: Height) -> Config {
        let c = 4 * height.rows() as u8;
        Config::new([16; 8], [c, c, c, c, 64, 64, c, c])
    }

    const fn values(height: Height) -> Config {
        let r = 2 * height.rows() as u8;
        Config::new([r, r, r, r, r, r, 16, 16], [64; 8])
    }
}

/// The calling thread's tiles are configured while this lives.
#[derive(Debug)]
pub(crate) struct Tiles {
    shape: Cell<Shape>,
    line: Line,
    /// Tiles belong to a thread: neither Send nor Sync.
    _thread: PhantomData<*const ()>,
}

impl Tiles {
    /// Makes the tiles of a shape, which zeroes them.
    #[inline]
    fn shape(&self, shape: Shape) {
        let shape = match shape {
            Shape::Scores(Height::Sixteen) | Shape::Values(Height::Eight) => Shape::Whole,
            shape => shape,
        };
        if self.shape.get() != shape {
            self.configure(shape);
        }
    }

    /// Multiplies two tiles and stores one, for nobody. What multiplies tiles and what stores them sleep, each by itself,
    /// after 300 to 550 ns without work, and take 250 to 300 ns to wake up; whoever computes something else between
    /// products calls this from time to time.
    ///
    /// Long loops of products store one tile in between for the same reason. Its rows are all one line (a stride of 0).
    ///
    /// PERF: without any of it and with, two threads of a Xeon, L 8192, B 8, `q_len` 1 and 4, medians of three rounds in turn, us:
    /// GQA 10546, 10184 and 11984, 10826; GTA 6380, 6306 and 7635, 7484; MLA with 16 heads 4221, 4072 and 7304, 6592; GLA-2
    /// with 16 heads 4018, 3853 and 5939, 5193. Called while many rows are weighed as well, at B 1: GLA-2 with 128 heads 870
    /// instead of 869, MLA 1311 instead of 1276. Between the heads of many rows, and at the start of each call of
    /// [`scores_2x2`]: GLA-2 with 128 heads at `q_len` 2 11472 instead of 10444, 11039 without any.
    #[inline(always)]
    pub(crate) fn keep_awake(&self) {
        // SAFETY: there is a guard, so tiles are configured, and in each shape these three fit each other. No tile keeps
        // anything from one block of assembly to the next. Rows of at most 64 bytes, all at the same address, are
        // written to a line which is this thread's and of which there are no references.
        unsafe {
            asm!(
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tilestored [{}], tmm4",
                in(reg) self.line.0.get(),
                out("tmm0") _,
                options(nostack, preserves_flags),
            );
        }
    }

    fn configure(&self, shape: Shape) {
        static WHOLE: Config = Config::new([16; 8], [64; 8]);
        static SCORES: [Config; 2] = [Config::scores(Height::Four), Config::scores(Height::Eight)];
        static VALUES: Config = Config::values(Height::Four);
        let config = match shape {
            Shape::Scores(Height::Four) => &SCORES[0],
            Shape::Scores(Height::Eight) => &SCORES[1],
            Shape::Values(Height::Four) => &VALUES,
            Shape::Whole | Shape::Scores(Height::Sixteen) | Shape::Values(_) => &WHOLE,
        };
        // SAFETY: there is a guard, so the instruction may be executed, and the operand is the 64 bytes that
        // it reads.
        unsafe { asm!("ldtilecfg [{}]", in(reg) config, options(nostack, readonly)) }
        self.shape.set(shape);
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: tiles exist, or there would be no guard. Releasing them keeps the system from
        // saving 8 KiB at every switch of threads.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

pub(crate) fn cpuid(leaf: u32) -> CpuidResult {
    #[allow(
        unused_unsafe,
        reason = "later compilers than the oldest supported know that it is safe"
    )]
    // SAFETY: every x86-64 processor has the instruction, and answers any leaf.
    unsafe {
        __cpuid_count(leaf, 0)
    }
}

fn permit() -> Result<(), &'static str> {
    const TILE: u32 = 1 << 24;
    const BF16: u32 = 1 << 22;
    const OSXSAVE: u32 = 1 << 27;
    let leaf = cpuid(7);
    if leaf.edx & TILE == 0 || leaf.edx & BF16 == 0 {
        return Err("the processor lacks AMX with bf16");
    }
    let vectors = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16");
    if !vectors {
        return Err("the processor lacks AVX-512 F, BW, DQ, VL or BF16");
    }
    if cpuid(1).ecx & OSXSAVE == 0 {
        return Err("the system does not manage extended registers");
    }
    // SAFETY: OSXSAVE says that the instruction exists.
    let enabled = unsafe { extended_registers() };
    const TILE_CONFIG_AND_DATA: u64 = 1 << 17 | 1 << 18;
    if enabled & TILE_CONFIG_AND_DATA != TILE_CONFIG_AND_DATA {
        return Err("the system does not manage AMX registers");
    }
    permission()
}

#[target_feature(enable = "xsave")]
fn extended_registers() -> u64 {
    // SAFETY: register 0 always exists.
    unsafe { _xgetbv(0) }
}

/// Asks Linux to let this process, all threads of it, use tile data.
#[cfg(target_os = "linux")]
fn permission() -> Result<(), &'static str> {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call reads and writes no memory of this process; the instruction overwrites rcx
    // and r11, as declared.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA, out("rcx") _, out("r11") _, options(nostack));
    }
    if result == 0 { Ok(()) } else { Err("the system refuses the use of AMX") }
}

#[cfg(not(target_os = "linux"))]
fn permission() -> Result<(), &'static str> {
    Err("how to ask this system for AMX is not known")
}
