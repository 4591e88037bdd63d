// Tiles that are too large for three of them to fit: cut into units of 128 columns, which pass through a
// ring one by one, so that what is left of the room holds parts of a tile.
//
// Beside its units a tile has a side: the rope key, and once the scores are there, in its place their
// exponentials P.
#pragma once

#include "ptx/barrier.cuh"
#include "tile/block.cuh"
#include "tile/ring.cuh"

constexpr i32 UNIT_BLOCKS = 2;

struct Unit {
  Block<64> blocks[UNIT_BLOCKS];
};

template <i32 ROPE_BLOCKS>
struct Side {
  Block<64> blocks[ROPE_BLOCKS > 0 ? ROPE_BLOCKS : 1];
};

// What the blocks of a tile are called throughout: `Units::UNITS` of the ring, `TILE_UNITS` of them a
// tile, `SIDES` sides.
template <i32 UNITS_, i32 SIDES_, i32 STATE_BLOCKS, i32 ROPE_BLOCKS_>
struct Units {
  static constexpr i32 UNITS = UNITS_, SIDES = SIDES_, ROPE_BLOCKS = ROPE_BLOCKS_;
  static constexpr i32 TILE_UNITS = STATE_BLOCKS / UNIT_BLOCKS;
  static_assert(STATE_BLOCKS % UNIT_BLOCKS == 0 && TILE_UNITS <= UNITS);

  Unit units[UNITS];
  Side<ROPE_BLOCKS> sides[SIDES];
};

template <class Units>
struct UnitRing {
  u64 unit_full[Units::UNITS], unit_empty[Units::UNITS];
  u64 side_full[Units::SIDES], side_empty[Units::SIDES];
  // Of rows, whose units are not announced one by one: of the last one, by side.
  u64 last_full[Units::SIDES];
  // As in Ring, of the tile of a side.
  u32 bad_page[Units::SIDES];

  __device__ __forceinline__ void init(u32 producers, u32 unit_consumers, u32 side_consumers) {
    for (i32 i = 0; i < Units::UNITS; ++i) {
      ptx::mbarrier_init(&unit_full[i], producers);
      ptx::mbarrier_init(&unit_empty[i], unit_consumers);
    }
    for (i32 i = 0; i < Units::SIDES; ++i) {
      ptx::mbarrier_init(&side_full[i], producers);
      ptx::mbarrier_init(&last_full[i], producers);
      ptx::mbarrier_init(&side_empty[i], side_consumers);
      bad_page[i] = 0;
    }
  }
};

// Where a tile is: its first unit, and its side.
template <class Units>
struct UnitCursor {
  Cursor<Units::UNITS> first;
  Cursor<Units::SIDES> side;

  __device__ __forceinline__ Cursor<Units::UNITS> unit(i32 index) const { return first.ahead(index); }

  __device__ __forceinline__ void advance() {
    first = first.ahead(Units::TILE_UNITS);
    side.advance();
  }
};

// The state's blocks of a tile, by number.
template <class Units>
struct TileBlocks {
  Units& tiles;
  const UnitCursor<Units>& at;

  __device__ __forceinline__ Block<64>* operator+(i32 block) const {
    return tiles.units[at.unit(block / UNIT_BLOCKS).stage].blocks + block % UNIT_BLOCKS;
  }
};
