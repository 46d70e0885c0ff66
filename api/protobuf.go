package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// kubectl sends reviews, which are Kubernetes' own types, as protobuf and cannot
// be told otherwise. These few messages are read here; everything else is JSON.

// protobufMagic starts every message of Kubernetes in protobuf.
var protobufMagic = []byte("k8s\x00")

// message maps field numbers to JSON names, with the messages within.
type message map[protowire.Number]field

type field struct {
	name  string
	inner message // nil: text
}

func reviewMessage(path string) message {
	switch path[strings.LastIndexByte(path, '/')+1:] {
	case "selfsubjectaccessreviews":
		return message{2: {"spec", message{
			1: {"resourceAttributes", message{
				1: {"namespace", nil}, 2: {"verb", nil}, 3: {"group", nil}, 4: {"version", nil},
				5: {"resource", nil}, 6: {"subresource", nil}, 7: {"name", nil},
			}},
			2: {"nonResourceAttributes", message{1: {"path", nil}, 2: {"verb", nil}}},
		}}}
	case "selfsubjectrulesreviews":
		return message{2: {"spec", message{1: {"namespace", nil}}}}
	}
	return message{}
}

// protobufAsJSON turns a review in protobuf into JSON and leaves JSON as it is.
func protobufAsJSON(path string, data []byte) ([]byte, error) {
	data, ok := bytes.CutPrefix(data, protobufMagic)
	if !ok {
		return data, nil
	}
	// The envelope is runtime.Unknown: field 2 is the object.
	var object any = map[string]any{}
	err := eachField(data, func(number protowire.Number, value []byte) error {
		var err error
		if number == 2 {
			object, err = readMessage(value, reviewMessage(path))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(object)
}

func readMessage(data []byte, fields message) (map[string]any, error) {
	out := map[string]any{}
	err := eachField(data, func(number protowire.Number, value []byte) error {
		known, ok := fields[number]
		switch {
		case !ok:
			return nil
		case known.inner == nil:
			out[known.name] = string(value)
			return nil
		}
		inner, err := readMessage(value, known.inner)
		out[known.name] = inner
		return err
	})
	return out, err
}

// eachField gives the fields that hold bytes and skips all others.
func eachField(data []byte, each func(protowire.Number, []byte) error) error {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return errors.New("it is no protobuf")
		}
		data = data[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, data); n < 0 {
				return errors.New("it is no protobuf")
			}
			data = data[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(data)
		if n < 0 {
			return errors.New("it is no protobuf")
		}
		if err := each(number, value); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}
