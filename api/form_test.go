package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"
)

// TestListsForPeople: a list that people read says what the one for programs does,
// indented, and in YAML; an empty one too.
func TestListsForPeople(t *testing.T) {
	b := start(t, nil)
	read := func(query, accept string) string {
		t.Helper()
		code, text, _ := b.raw(t, "GET", policiesPath+query, "", "", "Accept", accept)
		if code != 200 {
			t.Fatal(code, text)
		}
		return text
	}
	check := func() {
		t.Helper()
		for _, accept := range []string{jsonType, "application/json;as=Table;v=v1;g=meta.k8s.io", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"} {
			var want bytes.Buffer
			if err := json.Indent(&want, []byte(read("", accept)), "", "  "); err != nil {
				t.Fatal(err)
			}
			if got := read("?pretty=true", accept); got != want.String() {
				t.Errorf("%s:\n%s\nwant\n%s", accept, got, want.String())
			}
		}
		var want, got any
		if err := json.Unmarshal([]byte(read("", jsonType)), &want); err != nil {
			t.Fatal(err)
		}
		text := read("", "application/yaml")
		if err := yaml.Unmarshal([]byte(text), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%v: %s", err, text)
		}
	}
	check()
	for _, name := range []string{"a", "b"} {
		policy := strings.Replace(policyBody, `"name":"web"`, `"name":"`+name+`","annotations":{"x":"{\"a\": [1, 2]}\\"}`, 1)
		b.tell(t, []request{{name, "POST", policiesPath, jsonType, policy, nil, 201, ""}})
	}
	check()
}

// TestPrettyListTakesNoMore: what an indented list takes in memory does not grow with
// the list, nor does a YAML list's.
func TestPrettyListTakesNoMore(t *testing.T) {
	b := start(t, nil)
	const objects = 40
	for i := range objects {
		policy := strings.Replace(policyBody, `"name":"web"`, fmt.Sprintf(`"name":"p%d","annotations":{"x":%q}`, i, strings.Repeat("x", 100<<10)), 1)
		if code, text, _ := b.raw(t, "POST", policiesPath, jsonType, policy); code != 201 {
			t.Fatal(code, text)
		}
	}
	for _, query := range []string{"?pretty=true", ""} {
		accept := jsonType
		if query == "" {
			accept = "application/yaml"
		}
		request := httptest.NewRequest("GET", policiesPath+query, nil)
		request.Header.Set("Accept", accept)
		peer := &unix.Ucred{Uid: uint32(os.Getuid())}
		answer := &largest{ResponseRecorder: httptest.NewRecorder()}
		b.server.ServeHTTP(answer, request.WithContext(context.WithValue(request.Context(), peerKey{}, peer)))
		if answer.Code != 200 || strings.Count(answer.Body.String(), "xxxx") < objects || answer.most > 1<<20 {
			t.Errorf("%s: %d: %d bytes, %d at once", accept, answer.Code, answer.Body.Len(), answer.most)
		}
	}
}

// largest remembers how much was written at once.
type largest struct {
	*httptest.ResponseRecorder
	most int
}

func (l *largest) Write(data []byte) (int, error) {
	l.most = max(l.most, len(data))
	return l.ResponseRecorder.Write(data)
}

// TestIndenter: the same as json.Indent does with the whole, however it comes in pieces.
func TestIndenter(t *testing.T) {
	value := rapid.Custom(func(t *rapid.T) any { return drawn(t, 4) })
	rapid.Check(t, func(t *rapid.T) {
		data, err := json.Marshal(value.Draw(t, "value"))
		if err != nil {
			t.Fatal(err)
		}
		if rapid.Bool().Draw(t, "indented before") {
			if data, err = json.MarshalIndent(json.RawMessage(data), "\t", "   "); err != nil {
				t.Fatal(err)
			}
		}
		data = append(data, '\n')
		var want, got bytes.Buffer
		if err := json.Indent(&want, data, "", "  "); err != nil {
			t.Fatal(err)
		}
		out := bufio.NewWriter(&got)
		in := &indenter{out: out}
		for left := data; len(left) > 0; {
			n := rapid.IntRange(1, len(left)).Draw(t, "piece")
			if _, err := in.Write(left[:n]); err != nil {
				t.Fatal(err)
			}
			left = left[n:]
		}
		if err := out.Flush(); err != nil || got.String() != want.String() {
			t.Fatalf("%v\n%s\nwant\n%s", err, got.String(), want.String())
		}
	})
}

func drawn(t *rapid.T, depth int) any {
	kinds := 4
	if depth == 0 {
		kinds = 2
	}
	switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
	case 0:
		return rapid.StringOf(rapid.RuneFrom([]rune("{}[],:\\\" \n\tab\u2028é"))).Draw(t, "text")
	case 1:
		return rapid.SampledFrom([]any{nil, true, -1.5, 12}).Draw(t, "word")
	case 2:
		list := []any{}
		for range rapid.IntRange(0, 3).Draw(t, "items") {
			list = append(list, drawn(t, depth-1))
		}
		return list
	}
	object := map[string]any{}
	for range rapid.IntRange(0, 3).Draw(t, "fields") {
		object[rapid.StringN(0, 3, -1).Draw(t, "key")] = drawn(t, depth-1)
	}
	return object
}
