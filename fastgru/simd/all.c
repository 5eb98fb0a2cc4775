/* The one file that each instruction set compiles, with its own flags and its own FG_ISA_… macro. It exports one
 * constant table; everything else is static, so that no symbol of one ISA can stand in for another's. */
#if defined(_MSC_VER) && !defined(__clang__)
#pragma fp_contract(off) /* -ffp-contract=off elsewhere: only v_fma may fuse */
#endif

#include <stddef.h>
#include <string.h>

#include "table.h"
#include "vec.h"

#include "activations.h"
#include "product.h"

#include "gru_step.c"
#include "matmul.c"
#include "gru_backward.c"
#include "outer.c"

#define FG_JOIN_(a, b) a##b
#define FG_JOIN(a, b) FG_JOIN_(a, b)
#define FG_TEXT_(a) #a
#define FG_TEXT(a) FG_TEXT_(a)

#if defined(__GNUC__)
__attribute__((visibility("hidden")))
#endif
extern const fg_table FG_JOIN(fg_table_, FG_ISA_NAME);

const fg_table FG_JOIN(fg_table_, FG_ISA_NAME) = {
    FG_TEXT(FG_ISA_NAME), VEC_WIDTH, VEC_ROWS, linear, gru_step, gru_step_backward, pack_outer, outer, column_sums, activate,
};
