// The generator of cells that draw, see fused_rnn/cells/draws.py.

#pragma once

#include <cstdint>

namespace fused_rnn {

// The key of the generator, and the place of a row's first unit in its counter.
struct Place {
  uint32_t key[2], unit, row, step, direction;
};

struct Words {
  uint32_t word[4];
};

// Philox-4x32-10 of a counter.
inline Words philox(const Place &place, uint32_t unit, uint32_t step, uint32_t number) {
  uint32_t c0 = unit, c1 = place.row, c2 = step, c3 = number + place.direction;
  uint32_t k0 = place.key[0], k1 = place.key[1];
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t(0xD2511F53u) * c0, second = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(second >> 32) ^ c1 ^ k0;
    c1 = uint32_t(second);
    c2 = uint32_t(first >> 32) ^ c3 ^ k1;
    c3 = uint32_t(first);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace fused_rnn
