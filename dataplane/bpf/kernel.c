//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// One object, so that all hooks share one set of maps.

#include "from.c"
#include "to.c"
#include "engine.c"
#include "decoy.c"
#include "wire.c"
#include "driver.c"
#include "sweep.c"
#include "inherit.c"
#include "stage.c"

char _license[] SEC("license") = "Dual BSD/GPL";
