// Which items a CTA computes, in order (the words are defined in abi.cuh).
#pragma once

#include "tile/number.cuh"

struct Item {
  Piece piece;
  i32 head;       // first cached head
  i32 first_row;  // first packed row
  i32 rows;       // packed rows of the sequence; those past it are padding
  i32 slot;       // partial result, or -1

  __device__ __forceinline__ i32 tiles() const {
    return ceil_div(piece.kv_end - piece.kv_begin, TILE_TOKENS);
  }
};

template <class Visit>
__device__ __forceinline__ void for_each_item(const Schedule& schedule, i32 group, Visit visit) {
  const i32 team = blockIdx.x / schedule.team;
  if (team >= schedule.teams) return;
  const i32 end = schedule.team_pieces[team + 1];
  for (i32 index = schedule.team_pieces[team]; index < end; ++index) {
    const Piece piece = schedule.pieces[index];
    const i32 rows = piece.q_len * group;
    const i32 lanes = ceil_div(rows, schedule.item_rows) * schedule.head_blocks;
    for (i32 lane = blockIdx.x % schedule.team; lane < lanes; lane += schedule.team) {
      const i32 head = lane % schedule.head_blocks * schedule.item_heads;
      const i32 first_row = lane / schedule.head_blocks * schedule.item_rows;
      const i32 slot = piece.slot < 0 ? -1 : piece.slot + lane * piece.parts;
      visit(Item{piece, head, first_row, rows, slot});
    }
  }
}
