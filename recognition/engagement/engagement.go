// Package engagement recognises who deals with decoys. Nobody has a reason to:
// policy refused the flow, and no workload was told of the decoy.
//
//	evidence    "decoy-touch", "decoy-probe", "decoy-login", "decoy-command"; all decisive
//	ATT&CK      T1046 for touch and probe, T1110 for login, T1021 for command
//	roles       attacker: who contacts; victims: those whose addresses the decoy wore
//	state       none
//
// A touch may still be a client with a stale address, so it makes an incident of
// low severity and is only watched; a credential or a command has no innocent
// reading. Weights: 1.5, 2, 3 and 4 (3 to 4 is what the project's notes give decoys).
package engagement

import (
	"fmt"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/recognition/evidence"
)

// Kinds of evidence, by the depth of the engagement.
const (
	KindTouch   = "decoy-touch"
	KindProbe   = "decoy-probe"
	KindLogin   = "decoy-login"
	KindCommand = "decoy-command"
)

const halfLife = 12 * time.Hour

// Engagement weighs one contact with a decoy. It returns false where nobody can
// be held to it, or the depth is unknown.
func Engagement(e *bocage.EngagementEvent, from, to evidence.Party, record evidence.Record) (evidence.Item, bool) {
	if from.IsZero() {
		return evidence.Item{}, false
	}
	item := evidence.Item{
		Stage: evidence.StageDeception, HalfLife: halfLife, Decisive: true,
		Attacker: from, Key: e.Decoy,
		Time: e.Time, First: e.Time, Facts: Facts{Decoy: e.Decoy, Depth: e.Depth, Detail: e.Detail},
		Records: []evidence.Record{record},
	}
	if !to.IsZero() {
		item.Victims = []evidence.Party{to}
	}
	switch e.Depth {
	case bocage.DepthTouch:
		item.Kind, item.Technique = KindTouch, "T1046"
		item.Weight, item.Severity, item.Answer = 1.5, evidence.Low, evidence.AnswerWatch
	case bocage.DepthProbe:
		item.Kind, item.Technique = KindProbe, "T1046"
		item.Weight, item.Severity, item.Answer = 2, evidence.Medium, evidence.AnswerWatch
	case bocage.DepthLogin:
		item.Kind, item.Technique = KindLogin, "T1110"
		item.Weight, item.Severity, item.Answer = 3, evidence.High, evidence.AnswerContain
	case bocage.DepthCommand:
		item.Kind, item.Technique = KindCommand, "T1021"
		item.Weight, item.Severity, item.Answer = 4, evidence.Critical, evidence.AnswerContain
	default:
		return evidence.Item{}, false
	}
	return item, true
}

// Facts is what an attacker did with a decoy.
type Facts struct {
	Decoy  string
	Depth  bocage.Depth
	Detail map[string]string
}

func (f Facts) String() string {
	switch f.Depth {
	case bocage.DepthTouch:
		return fmt.Sprintf("connected to decoy %s in the place of {victims}", f.Decoy)
	case bocage.DepthProbe:
		return fmt.Sprintf("spoke to decoy %s in the place of {victims}%s", f.Decoy, f.first("banner", "client", "version"))
	case bocage.DepthLogin:
		return fmt.Sprintf("tried to log in to decoy %s in the place of {victims}%s", f.Decoy, f.first("user", "username"))
	default:
		return fmt.Sprintf("gave commands to decoy %s in the place of {victims}%s", f.Decoy, f.first("command"))
	}
}

// first is the first of the details that was learned.
func (f Facts) first(keys ...string) string {
	for _, key := range keys {
		if value := f.Detail[key]; value != "" {
			return ": " + key + " " + evidence.Quote(value)
		}
	}
	return ""
}
