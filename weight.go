package bocage

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// LabelWeight is the label that says how much the loss of a workload would weigh, as a
// whole number; 1 without it (see BlastRadius). Whoever labels the workload sets it: for a
// container or a Pod, whoever starts that. A guardrail that does not rely on them sets
// BlastRadius.LeastWeight.
const LabelWeight = "bocage.dev/weight"

// HeaviestWorkload is the greatest weight that a workload has.
const HeaviestWorkload = 1_000_000

// Weight is how much the loss of the workload weighs. The second result says what is wrong
// with its label, if anything. A label that cannot be read never makes a workload lighter
// than one without a label: a number that is too great counts as the greatest, anything
// else as 1.
func (w *Workload) Weight() (weight int, fault string) {
	text, labelled := w.Labels[LabelWeight]
	if !labelled {
		return 1, ""
	}
	n, err := strconv.ParseUint(text, 10, 64)
	switch {
	case err == nil && n <= HeaviestWorkload:
		return int(n), ""
	case text != "" && strings.Trim(text, "0123456789") == "":
		weight = HeaviestWorkload
	default:
		weight = 1
	}
	return weight, fmt.Sprintf("%q is not a whole number from 0 to %d, so that it counts as %d", text, HeaviestWorkload, weight)
}

// AddWeights adds two weights. A sum that has no room is the greatest that has.
func AddWeights(a, b int) int {
	if a > math.MaxInt-b {
		return math.MaxInt
	}
	return a + b
}
