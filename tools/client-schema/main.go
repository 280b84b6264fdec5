// Command client-schema prints what the clients in other languages need to know of
// Kubernetes' types besides their protobuf descriptors: the built-in kinds, and how the
// fields of each message appear in Kubernetes' JSON. Its output is clients/kubernetes.json.
//
// The truth is in the tags of k8s.io's Go types, which hold the protobuf and the JSON name of
// each field. It must not read anything else.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
)

// Kind is a built-in kind.
type Kind struct {
	Message    string `json:"message"` // the full name of the protobuf message
	Group      string `json:"group"`
	Version    string `json:"version"`
	Kind       string `json:"kind"`
	Resource   string `json:"resource"` // the plural; empty if it only travels as the body of a subresource
	Namespaced bool   `json:"namespaced"`
	Stored     bool   `json:"stored"` // it can be listed and watched
}

// Message describes those fields of a message that differ from the rule: the JSON name is
// the protobuf name, and a zero value is left out of JSON. Fields have their protobuf names.
type Message struct {
	// Inline are fields whose own fields appear in JSON as those of the message.
	Inline []string `json:"inline,omitempty"`
	// Pointer are scalars and messages whose presence means something, even with the zero
	// value.
	Pointer []string `json:"pointer,omitempty"`
	// Required are fields that JSON always holds.
	Required []string `json:"required,omitempty"`
	// Names maps fields to JSON names that differ.
	Names map[string]string `json:"names,omitempty"`
}

// Schema is the output.
type Schema struct {
	Kinds    []Kind              `json:"kinds"`
	Messages map[string]*Message `json:"messages"`
}

func main() {
	data, err := Generate()
	if err == nil {
		_, err = os.Stdout.Write(data)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "client-schema:", err)
		os.Exit(1)
	}
}

// Generate returns the schema as JSON, one kind or message a line.
func Generate() ([]byte, error) {
	s := Schema{Messages: map[string]*Message{}}
	for _, k := range client.Kinds() {
		s.Kinds = append(s.Kinds, Kind{
			Message: k.ProtoName, Group: k.GVK.Group, Version: k.GVK.Version, Kind: k.GVK.Kind,
			Resource: k.Resource, Namespaced: k.Namespaced, Stored: k.Stored(),
		})
		s.message(reflect.TypeOf(k.New()).Elem())
	}
	s.message(reflect.TypeFor[metav1.Status]())
	s.message(reflect.TypeFor[metav1.PartialObjectMetadata]())
	var out bytes.Buffer
	out.WriteString("{\n\"kinds\": [")
	for i, k := range s.Kinds {
		if err := line(&out, i, "", k); err != nil {
			return nil, err
		}
	}
	out.WriteString("\n],\n\"messages\": {")
	names := make([]string, 0, len(s.Messages))
	for name, m := range s.Messages {
		if m.Inline != nil || m.Pointer != nil || m.Required != nil || m.Names != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for i, name := range names {
		if err := line(&out, i, fmt.Sprintf("%q: ", name), s.Messages[name]); err != nil {
			return nil, err
		}
	}
	out.WriteString("\n}\n}\n")
	return out.Bytes(), nil
}

func line(out *bytes.Buffer, i int, prefix string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%s%w", prefix, err)
	}
	if i > 0 {
		out.WriteByte(',')
	}
	fmt.Fprintf(out, "\n%s%s", prefix, data)
	return nil
}

var marshaler = reflect.TypeFor[json.Marshaler]()

// message adds the message of a Go struct, and those of its fields.
func (s *Schema) message(t reflect.Type) {
	if t.PkgPath() == "" || t.Implements(marshaler) || reflect.PointerTo(t).Implements(marshaler) {
		return // its JSON is not that of a struct: Time, Quantity, …
	}
	name := strings.ReplaceAll(t.PkgPath(), "/", ".") + "." + t.Name()
	if s.Messages[name] != nil {
		return
	}
	m := &Message{}
	s.Messages[name] = m
	for i := range t.NumField() {
		f := t.Field(i)
		field := protoName(f)
		if field == "" {
			continue
		}
		tag, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		elem := f.Type
		for elem.Kind() == reflect.Pointer || elem.Kind() == reflect.Slice || elem.Kind() == reflect.Map {
			elem = elem.Elem()
		}
		if elem.Kind() == reflect.Struct {
			s.message(elem)
		}
		if f.Anonymous && tag == "" {
			m.Inline = append(m.Inline, field)
			continue
		}
		if tag != field && tag != "" {
			if m.Names == nil {
				m.Names = map[string]string{}
			}
			m.Names[field] = tag
		}
		switch {
		case !strings.Contains(opts, "omitempty"):
			m.Required = append(m.Required, field)
		case f.Type.Kind() == reflect.Pointer:
			m.Pointer = append(m.Pointer, field)
		}
	}
}

// protoName returns the name that the tag of a field gives it in protobuf, by default the Go
// name with a small first letter, or "" if protobuf does not hold the field.
func protoName(f reflect.StructField) string {
	tag := f.Tag.Get("protobuf")
	if tag == "" || tag == "-" {
		return ""
	}
	for part := range strings.SplitSeq(tag, ",") {
		if name, ok := strings.CutPrefix(part, "name="); ok {
			return name
		}
	}
	return strings.ToLower(f.Name[:1]) + f.Name[1:]
}
