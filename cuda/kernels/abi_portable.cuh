// The structs of the kernels around attention: append and merge. What attention itself takes is in
// abi.cuh.
#pragma once

#include "abi.cuh"

// The cell of a new row.
struct Write {
  i32 page;
  i32 row;
};
static_assert(sizeof(Write) == 8, "mirrored in abi.rs");

// Cosine and sine of a pair's angle, formed in f64 on the host.
struct Turn {
  float cos;
  float sin;
};
static_assert(sizeof(Turn) == 8, "mirrored in abi.rs");

// One part of the new rows (keys, values, states or rope keys) and where it goes.
struct NewRows {
  const void* data;  // [writes, heads, width]
  void* cells;       // [pages, page_size, heads, width]
  i64 row_stride;
  i64 head_stride;
  i64 page_stride;
  i64 token_stride;
  i64 cell_head_stride;
  i32 heads;  // 0: the rows have no such part
  i32 width;
};
static_assert(sizeof(NewRows) == 64, "mirrored in abi.rs");

struct Append {
  NewRows part[2];
  const Write* writes;     // [write_count]
  const i32* write_count;  // [1]
  const Turn* turns;       // [write_count, width / 2] of the rotated part
  u32* status;
  i32 pages;
  i32 rotated;      // the part that is turned, or -1
  i32 interleaved;  // pairs are (2i, 2i + 1); otherwise (i, i + width / 2)
  i32 reserved;
};
static_assert(sizeof(Append) == 176, "mirrored in abi.rs");

// One of the two parts that are merged.
struct Part {
  void* o;     // [rows, h_q, d_v]
  float* lse;  // [rows, h_q]
  i64 o_row_stride;
  i64 o_head_stride;
  i64 lse_row_stride;
  i64 lse_head_stride;
};
static_assert(sizeof(Part) == 48, "mirrored in abi.rs");

struct MergeParts {
  Part into;
  Part other;  // only read
  i64 rows;
  i32 h_q;
  i32 d_v;
};
static_assert(sizeof(MergeParts) == 112, "mirrored in abi.rs");
