package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"bocage.dev/bocage"
)

// kubectl and client-go's typed clients send Kubernetes' own types as protobuf and
// have no second try. Those types are read here, by the numbers of their fields;
// every answer is JSON, which all of them take.

const protobufType = "application/vnd.kubernetes.protobuf"

// protobufMagic starts every message of Kubernetes in protobuf.
var protobufMagic = []byte("k8s\x00")

// message maps field numbers to what they hold.
type message map[protowire.Number]field

// field is one field of a message.
type field struct {
	name string
	as   valueKind
	many bool
	// inner describes the message within; nil for everything else.
	inner message
}

type valueKind int

const (
	asText valueKind = iota
	asNumber
	asBool
	asMessage
	asMap          // of text to text
	asTime         // seconds and nanoseconds
	asNumberOrName // a port
	asJSON         // bytes that are JSON
)

func text(name string) field    { return field{name: name} }
func texts(name string) field   { return field{name: name, many: true} }
func number(name string) field  { return field{name: name, as: asNumber} }
func boolean(name string) field { return field{name: name, as: asBool} }
func moment(name string) field  { return field{name: name, as: asTime} }
func mapping(name string) field { return field{name: name, as: asMap} }
func one(name string, m message) field {
	return field{name: name, as: asMessage, inner: m}
}
func list(name string, m message) field {
	return field{name: name, as: asMessage, many: true, inner: m}
}

func metadataMessage() message {
	owner := message{
		1: text("kind"), 3: text("name"), 4: text("uid"), 5: text("apiVersion"),
		6: boolean("controller"), 7: boolean("blockOwnerDeletion"),
	}
	managed := message{
		1: text("manager"), 2: text("operation"), 3: text("apiVersion"), 4: moment("time"),
		6: text("fieldsType"), 7: {name: "fieldsV1", as: asJSON}, 8: text("subresource"),
	}
	return message{
		1: text("name"), 2: text("generateName"), 3: text("namespace"), 4: text("selfLink"), 5: text("uid"),
		6: text("resourceVersion"), 7: number("generation"), 8: moment("creationTimestamp"), 9: moment("deletionTimestamp"),
		10: number("deletionGracePeriodSeconds"), 11: mapping("labels"), 12: mapping("annotations"),
		13: list("ownerReferences", owner), 14: texts("finalizers"), 17: list("managedFields", managed),
	}
}

func selectorMessage() message {
	return message{1: mapping("matchLabels"), 2: list("matchExpressions", message{1: text("key"), 2: text("operator"), 3: texts("values")})}
}

// objectMessage describes the kinds that clients have compiled in; nil for all
// others.
func objectMessage(kind bocage.Kind) message {
	switch kind.Name {
	case "NetworkPolicy":
		ports := list("ports", message{1: text("protocol"), 2: {name: "port", as: asNumberOrName}, 3: number("endPort")})
		peer := message{
			1: one("podSelector", selectorMessage()), 2: one("namespaceSelector", selectorMessage()),
			3: one("ipBlock", message{1: text("cidr"), 2: texts("except")}),
		}
		return message{1: one("metadata", metadataMessage()), 2: one("spec", message{
			1: one("podSelector", selectorMessage()),
			2: list("ingress", message{1: ports, 2: list("from", peer)}),
			3: list("egress", message{1: ports, 2: list("to", peer)}),
			4: texts("policyTypes"),
		})}
	case "Namespace":
		return message{
			1: one("metadata", metadataMessage()),
			2: one("spec", message{1: texts("finalizers")}),
			3: one("status", message{1: text("phase")}),
		}
	}
	return nil
}

func deleteOptionsMessage() message {
	return message{
		1: number("gracePeriodSeconds"), 2: one("preconditions", message{1: text("uid"), 2: text("resourceVersion")}),
		3: boolean("orphanDependents"), 4: text("propagationPolicy"), 5: texts("dryRun"),
	}
}

func reviewMessage(path string) message {
	switch path[strings.LastIndexByte(path, '/')+1:] {
	case "selfsubjectaccessreviews":
		return message{2: one("spec", message{
			1: one("resourceAttributes", message{
				1: text("namespace"), 2: text("verb"), 3: text("group"), 4: text("version"),
				5: text("resource"), 6: text("subresource"), 7: text("name"),
			}),
			2: one("nonResourceAttributes", message{1: text("path"), 2: text("verb")}),
		})}
	case "selfsubjectrulesreviews":
		return message{2: one("spec", message{1: text("namespace")})}
	}
	return message{}
}

// protobufAsJSON turns a message in protobuf into JSON and leaves JSON as it is.
func protobufAsJSON(data []byte, fields message) ([]byte, error) {
	data, ok := bytes.CutPrefix(data, protobufMagic)
	if !ok {
		return data, nil
	}
	// The envelope is runtime.Unknown: field 1 says what it is, field 2 holds it.
	object := map[string]any{}
	about := map[string]any{}
	err := eachField(data, func(number protowire.Number, w wire) error {
		var err error
		switch number {
		case 1:
			about, err = readMessage(w.bytes, message{1: text("apiVersion"), 2: text("kind")})
		case 2:
			object, err = readMessage(w.bytes, fields)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for name, value := range about {
		object[name] = value
	}
	return json.Marshal(object)
}

func readMessage(data []byte, fields message) (map[string]any, error) {
	out := map[string]any{}
	err := eachField(data, func(number protowire.Number, w wire) error {
		f, ok := fields[number]
		if !ok {
			return nil
		}
		return f.read(out, w)
	})
	return out, err
}

// read adds a field's value to what has been read.
func (f field) read(out map[string]any, w wire) error {
	var value any
	var err error
	switch f.as {
	case asText:
		if len(w.bytes) == 0 && !f.many {
			return nil // written, as if it were not there
		}
		value = string(w.bytes)
	case asNumber:
		value = int64(w.number)
	case asBool:
		value = w.number != 0
	case asMessage:
		value, err = readMessage(w.bytes, f.inner)
	case asTime:
		value, err = readTime(w.bytes)
	case asNumberOrName:
		value, err = readNumberOrName(w.bytes)
	case asJSON:
		value, err = readJSONBytes(w.bytes)
	case asMap:
		entries, ok := out[f.name].(map[string]string)
		if !ok {
			entries = map[string]string{}
			out[f.name] = entries
		}
		return eachEntry(w.bytes, entries)
	}
	switch {
	case err != nil:
		return err
	case value == nil:
	case f.many:
		values, _ := out[f.name].([]any)
		out[f.name] = append(values, value)
	default:
		out[f.name] = value
	}
	return nil
}

func eachEntry(data []byte, into map[string]string) error {
	var key, value string
	err := eachField(data, func(number protowire.Number, w wire) error {
		switch number {
		case 1:
			key = string(w.bytes)
		case 2:
			value = string(w.bytes)
		}
		return nil
	})
	into[key] = value
	return err
}

func readTime(data []byte) (any, error) {
	var seconds, nanoseconds uint64
	err := eachField(data, func(number protowire.Number, w wire) error {
		switch number {
		case 1:
			seconds = w.number
		case 2:
			nanoseconds = w.number
		}
		return nil
	})
	at := time.Unix(int64(seconds), int64(int32(nanoseconds))).UTC()
	if err != nil || seconds == 0 && nanoseconds == 0 || at.Year() < 1 || at.Year() > 9999 {
		return nil, err
	}
	return at.Format(time.RFC3339Nano), nil
}

func readNumberOrName(data []byte) (any, error) {
	var isName bool
	var n int32
	var name string
	err := eachField(data, func(number protowire.Number, w wire) error {
		switch number {
		case 1:
			isName = w.number == 1
		case 2:
			n = int32(w.number)
		case 3:
			name = string(w.bytes)
		}
		return nil
	})
	if isName {
		return name, err
	}
	return n, err
}

// readJSONBytes reads FieldsV1, whose one field is JSON.
func readJSONBytes(data []byte) (any, error) {
	var value any
	err := eachField(data, func(number protowire.Number, w wire) error {
		if number != 1 {
			return nil
		}
		if err := json.Unmarshal(w.bytes, &value); err != nil {
			return fmt.Errorf("a field holds no JSON: %w", err)
		}
		return nil
	})
	return value, err
}

// wire is a field's value as it is encoded: a number or bytes.
type wire struct {
	number uint64
	bytes  []byte
}

var errNoProtobuf = errors.New("it is no protobuf")

// eachField gives the fields that hold numbers and bytes and skips all others.
func eachField(data []byte, each func(protowire.Number, wire) error) error {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return errNoProtobuf
		}
		data = data[n:]
		var w wire
		switch kind {
		case protowire.VarintType:
			w.number, n = protowire.ConsumeVarint(data)
		case protowire.BytesType:
			w.bytes, n = protowire.ConsumeBytes(data)
		default:
			n = protowire.ConsumeFieldValue(number, kind, data)
		}
		if n < 0 {
			return errNoProtobuf
		}
		data = data[n:]
		if kind != protowire.VarintType && kind != protowire.BytesType {
			continue
		}
		if err := each(number, w); err != nil {
			return err
		}
	}
	return nil
}
