package bocage

import (
	"encoding/json"
	"fmt"
	"math"
	"testing"
)

// TestDecisionIDForm: a decision's number reads the same in texts as in JSON, whose
// numbers every reader holds exactly up to 2^53.
func TestDecisionIDForm(t *testing.T) {
	for _, id := range []DecisionID{0, 1, 4711, math.MaxUint32} {
		inJSON, err := json.Marshal(Reason{Code: ReasonRule, Decision: id, Would: VerdictAllow})
		if err != nil {
			t.Fatal(err)
		}
		var read struct{ Decision json.Number }
		if err := json.Unmarshal(inJSON, &read); err != nil {
			t.Fatal(err)
		}
		if text := fmt.Sprint(id); id != 0 && read.Decision.String() != text {
			t.Errorf("%s in JSON, %s in texts", read.Decision, text)
		}
	}
}
