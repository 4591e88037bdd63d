// Which items a CTA computes, in order (the words are defined in abi.cuh).
#pragma once

#include "tile/number.cuh"

struct Item {
  Piece piece;
  i32 head;       // first cached head
  i32 first_row;  // first packed row
  i32 rows;       // packed rows of the sequence; those past it are padding
  i32 slot;       // partial result, or -1

  // At least one: of an empty sequence's nobody sees anything.
  __device__ __forceinline__ i32 tiles() const {
    return max(1, ceil_div(piece.kv_end - piece.kv_begin, TILE_TOKENS));
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

// The same as a walk that keeps three numbers from item to item, where registers are short.
// PERF: only there: with it tied_sm80 of MLA spills 20 bytes instead of 12.
struct ItemWalk {
  i32 index, end;  // of the team's pieces
  i32 lane;

  __device__ __forceinline__ explicit ItemWalk(const Schedule& schedule) : index(0), end(0) {
    const i32 team = blockIdx.x / schedule.team;
    lane = blockIdx.x % schedule.team;
    if (team >= schedule.teams) return;
    index = schedule.team_pieces[team];
    end = schedule.team_pieces[team + 1];
  }

  // False where there are no more.
  __device__ __forceinline__ bool next(Item& item, const Schedule& schedule, i32 group) {
    for (; index < end; ++index, lane = blockIdx.x % schedule.team) {
      item.piece = schedule.pieces[index];
      item.rows = item.piece.q_len * group;
      if (lane >= ceil_div(item.rows, schedule.item_rows) * schedule.head_blocks) continue;
      item.head = lane % schedule.head_blocks * schedule.item_heads;
      item.first_row = lane / schedule.head_blocks * schedule.item_rows;
      item.slot = item.piece.slot < 0 ? -1 : item.piece.slot + lane * item.piece.parts;
      lane += schedule.team;
      return true;
    }
    return false;
  }
};
