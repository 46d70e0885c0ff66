package lake

import (
	"bytes"
	"testing"
	"time"
)

func FuzzSegmentName(f *testing.F) {
	f.Add("class=network_activity/day=20260301/hour=09", "00000000000000000001-00000000000000000025.parquet")
	f.Add("class=x/day=1/../..", "99999999999999999999-00000000000000000001.parquet")
	f.Fuzz(func(t *testing.T, partition, name string) {
		if s, ok := parseSegment(partition, name); ok && (s.name() != name || s.partition != partition || s.first > s.last) {
			t.Errorf("%q %q became %+v", partition, name, s)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("{\"columns\":[\"a\"]}\n{\"row\":[1]}\n{\"done\":true}\n"))
	f.Add([]byte("{\"error\":\"no\"}\n"))
	f.Fuzz(func(t *testing.T, output []byte) {
		if result, err := readAnswer(bytes.NewReader(output)); err == nil && (result.Columns == nil || result.Rows == nil) {
			t.Error("an answer without columns or rows")
		}
	})
}

// Whatever a batch holds, its records can be encoded.
func FuzzRows(f *testing.F) {
	f.Add(batch(1, morning, 3))
	f.Add([]byte(`{"flows":"AAAA","engagements":[{"time":"0001-01-01T00:00:00Z"}],"inspections":[{"time":"9999-12-31T23:59:59Z"}]}`))
	f.Fuzz(func(t *testing.T, envelope []byte) {
		b, err := openPlain(envelope)
		if err != nil {
			return
		}
		r := newRows()
		r.add(b, "h", time.Unix(1e9, 0), nameOf)
		if err := writeRows(t.TempDir(), r); err != nil {
			t.Error(err)
		}
	})
}
