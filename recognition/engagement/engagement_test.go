package engagement

import (
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/recognition/evidence"
)

func TestEngagement(t *testing.T) {
	from, to := evidence.Party{Identity: 20}, evidence.Party{Identity: 21}
	for depth, test := range map[bocage.Depth]struct {
		severity  evidence.Severity
		answer    evidence.Answer
		technique string
		text      string
	}{
		bocage.DepthTouch:   {evidence.Low, evidence.AnswerWatch, "T1046", "connected to decoy ssh"},
		bocage.DepthProbe:   {evidence.Medium, evidence.AnswerWatch, "T1046", "spoke to decoy ssh in the place of {victims}: banner “SSH-2.0-Go”"},
		bocage.DepthLogin:   {evidence.High, evidence.AnswerContain, "T1110", "tried to log in to decoy ssh in the place of {victims}: user “root”"},
		bocage.DepthCommand: {evidence.Critical, evidence.AnswerContain, "T1021", "gave commands to decoy ssh in the place of {victims}: command “id”"},
	} {
		item, ok := Engagement(&bocage.EngagementEvent{Decoy: "ssh", Depth: depth,
			Detail: map[string]string{"banner": "SSH-2.0-Go", "user": "root", "command": "id"}}, from, to, evidence.Record{})
		if !ok || !item.Decisive || item.Severity != test.severity || item.Answer != test.answer || item.Technique != test.technique ||
			!strings.HasPrefix(item.Facts.String(), test.text) {
			t.Errorf("%s: %+v %s", depth, item, item.Facts)
		}
	}
	for name, e := range map[string]bocage.EngagementEvent{"no depth": {}, "new depth": {Depth: "deeper"}} {
		if _, ok := Engagement(&e, from, to, evidence.Record{}); ok {
			t.Error(name)
		}
	}
	if _, ok := Engagement(&bocage.EngagementEvent{Depth: bocage.DepthLogin}, evidence.Party{}, to, evidence.Record{}); ok {
		t.Error("nobody was held to it")
	}
}
