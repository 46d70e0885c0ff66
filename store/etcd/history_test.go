package etcd

import (
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

func TestHistory(t *testing.T) {
	header := func(cluster uint64, revision int64) *etcdserverpb.ResponseHeader {
		return &etcdserverpb.ResponseHeader{ClusterId: cluster, Revision: revision}
	}
	var embedded *history
	if err := embedded.follows(7, header(1, 3)); err != nil || embedded.failure() != nil || embedded.far() != 0 {
		t.Errorf("the embedded server: %v", err)
	}
	h := newHistory()
	// Answers overtake each other: what counts is what was known when it was asked.
	for _, answer := range []struct{ before, revision int64 }{{0, 10}, {10, 12}, {10, 11}, {12, 12}} {
		if err := h.follows(answer.before, header(1, answer.revision)); err != nil {
			t.Fatalf("%+v: %v", answer, err)
		}
	}
	if h.far() != 12 {
		t.Errorf("it is at %d", h.far())
	}
	if err := h.follows(h.far(), header(1, 11)); err == nil || !strings.Contains(err.Error(), "restored from a backup: it was at revision 12 and is at 11") {
		t.Errorf("it went back: %v", err)
	}
	select {
	case <-h.failed:
	default:
		t.Error("nobody is told")
	}
	if err := h.follows(0, header(1, 100)); err == nil {
		t.Error("once it went back, it is not gone on with")
	}
	h = newHistory()
	if err := h.follows(0, header(1, 10)); err != nil {
		t.Fatal(err)
	}
	if err := h.follows(10, header(2, 20)); err == nil || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("another cluster: %v", err)
	}
}
