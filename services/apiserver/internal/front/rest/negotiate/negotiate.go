// Package negotiate decides in which form an answer is written, from the Accept
// header, and in which form a body came, from the Content-Type.
//
// Kubernetes' rules: clauses are taken by their quality, then in the client's
// order; a clause that asks for an unknown transformation is passed over; a
// wildcard is JSON; no header is JSON. It must never look at a body.
package negotiate

import (
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// Encoding is how objects are written.
type Encoding uint8

// The encodings.
const (
	JSON Encoding = iota
	YAML
	Protobuf
)

// The media types of the encodings.
const (
	MediaJSON     = "application/json"
	MediaYAML     = "application/yaml"
	MediaProtobuf = "application/vnd.kubernetes.protobuf"
)

// MediaType is the encoding's media type.
func (e Encoding) MediaType() string {
	switch e {
	case YAML:
		return MediaYAML
	case Protobuf:
		return MediaProtobuf
	}
	return MediaJSON
}

// Transform is what is made of the objects before they are written.
type Transform uint8

// The transformations.
const (
	// Whole leaves objects as they are.
	Whole Transform = iota
	// Table makes rows for people to read.
	Table
	// PartialMetadata keeps the metadata alone; of a list that of each item.
	PartialMetadata
)

// Format is an encoding of a transformation.
type Format struct {
	Encoding  Encoding
	Transform Transform
	// Beta asks for meta.k8s.io/v1beta1 as the transformation's version.
	Beta bool
	// List is set where PartialMetadata was asked for as PartialObjectMetadataList.
	List bool
	// Pretty asks for indented JSON.
	Pretty bool
}

// Purpose limits what can be answered.
type Purpose uint8

// The purposes.
const (
	// Object is an answer of one kind that is not transformed (an error, a write).
	Object Purpose = iota
	// Read is a get, list or write of a kind with a table.
	Read
	// Watch is a stream of events: no YAML.
	Watch
)

// clause is one of an Accept header.
type clause struct {
	media          string
	as, group, ver string
	q              float64
	// pretty asks for indented JSON; other is a stream or a server version that
	// nothing has.
	pretty, other bool
}

func nextClause(header string) (c clause, rest string) {
	part, rest, _ := strings.Cut(header, ",")
	media, params, more := strings.Cut(part, ";")
	c.media = strings.TrimSpace(media)
	c.q = 1
	for more {
		var param string
		param, params, more = strings.Cut(params, ";")
		key, value, _ := strings.Cut(strings.TrimSpace(param), "=")
		value = strings.Trim(value, `"`)
		switch key {
		case "as":
			c.as = value
		case "g":
			c.group = value
		case "v":
			c.ver = value
		case "q":
			if q, err := strconv.ParseFloat(value, 64); err == nil && q >= 0 && q <= 1 {
				c.q = q
			}
		case "pretty":
			c.pretty = value == "1"
		case "stream":
			c.other = c.other || value != "" && value != "watch"
		case "sv":
			c.other = c.other || value != "" && value != "v1"
		}
	}
	return c, rest
}

// format is what a clause asks for; wild tells that it named no encoding.
func (c *clause) format(purpose Purpose) (f Format, wild, ok bool) {
	switch c.media {
	case MediaJSON:
	case "*/*", "application/*", "*":
		wild = true
	case MediaYAML:
		if purpose == Watch {
			return f, false, false
		}
		f.Encoding = YAML
	case MediaProtobuf:
		f.Encoding = Protobuf
	default:
		return f, false, false
	}
	f.Pretty = c.pretty && f.Encoding == JSON
	if c.other {
		return f, false, false
	}
	switch c.as {
	case "":
		return f, wild, c.group == "" && c.ver == ""
	case "Table":
		f.Transform = Table
		if f.Encoding == Protobuf {
			return f, false, false
		}
	case "PartialObjectMetadata":
		f.Transform = PartialMetadata
	case "PartialObjectMetadataList":
		f.Transform, f.List = PartialMetadata, true
	default:
		return f, false, false
	}
	if purpose == Object || c.group != "meta.k8s.io" {
		return f, false, false
	}
	switch c.ver {
	case "v1":
	case "v1beta1":
		f.Beta = true
	default:
		return f, false, false
	}
	return f, wild, true
}

// Accept reads an Accept header; ok is false where nothing it asks for can be
// answered.
func Accept(header string, purpose Purpose) (best Format, ok bool) {
	switch header {
	case "", MediaJSON, "*/*":
		return Format{}, true
	case MediaProtobuf, MediaProtobuf + "," + MediaJSON, MediaProtobuf + ", " + MediaJSON:
		return Format{Encoding: Protobuf}, true
	}
	var (
		quality float64
		wild    bool
	)
	for header != "" {
		var c clause
		c, header = nextClause(header)
		f, w, fits := c.format(purpose)
		if !fits {
			continue
		}
		if !ok || c.q > quality || c.q == quality && wild && !w {
			best, quality, wild, ok = f, c.q, w, true
		}
	}
	return best, ok
}

// Named reports whether an Accept header has a clause for everything or for one of
// the encodings, whatever its parameters.
func Named(header string) bool { return Names(header, MediaJSON, MediaYAML, MediaProtobuf) }

// Names reports whether an Accept header, if there is one, has a clause for everything
// or for one of some media types, whatever its parameters.
func Names(header string, types ...string) bool {
	named := header == ""
	for header != "" && !named {
		var c clause
		c, header = nextClause(header)
		named = c.media == "*/*" || slices.Contains(types, c.media)
	}
	return named
}

// Gzip tells whether an Accept-Encoding header admits gzip.
func Gzip(header string) bool {
	for header != "" {
		var part string
		part, header, _ = strings.Cut(header, ",")
		name, params, _ := strings.Cut(part, ";")
		if strings.TrimSpace(name) != "gzip" {
			continue
		}
		key, value, _ := strings.Cut(strings.TrimSpace(params), "=")
		if key == "q" {
			if q, err := strconv.ParseFloat(value, 64); err == nil && q == 0 {
				return false
			}
		}
		return true
	}
	return false
}

// media is a Content-Type without its parameters, in lower case.
func media(contentType string) string {
	m, _, _ := strings.Cut(contentType, ";")
	m = strings.TrimSpace(m)
	for i := 0; i < len(m); i++ {
		if 'A' <= m[i] && m[i] <= 'Z' {
			return strings.ToLower(m)
		}
	}
	return m
}

// Body reads the Content-Type of an object; none is JSON.
func Body(contentType string) (Encoding, bool) {
	if contentType == "" {
		return JSON, true
	}
	switch media(contentType) {
	case MediaJSON:
		return JSON, true
	case MediaYAML:
		return YAML, true
	case MediaProtobuf:
		return Protobuf, true
	}
	return JSON, false
}

// BodyTypes are what Body understands, for the error's text.
var BodyTypes = []string{MediaJSON, MediaYAML, MediaProtobuf}

// Patch reads the Content-Type of a patch.
func Patch(contentType string) (types.PatchType, bool) {
	switch t := types.PatchType(media(contentType)); t {
	case types.JSONPatchType, types.MergePatchType, types.StrategicMergePatchType, types.ApplyYAMLPatchType:
		return t, true
	}
	return "", false
}

// DiscoveryFormat is how a discovery document is written.
type DiscoveryFormat struct {
	Encoding Encoding
	// Version of apidiscovery.k8s.io for the aggregated form; empty is the old
	// form.
	Version string
	// Pretty asks for indented JSON.
	Pretty bool
}

// AcceptDiscovery reads an Accept header for a discovery document. aggregated
// tells whether there is an aggregated form.
func AcceptDiscovery(header string, aggregated bool) (best DiscoveryFormat, ok bool) {
	if header == "" {
		return DiscoveryFormat{}, true
	}
	var quality float64
	for header != "" {
		var c clause
		c, header = nextClause(header)
		var f DiscoveryFormat
		switch {
		case c.as == "":
		case aggregated && c.as == "APIGroupDiscoveryList" && c.group == "apidiscovery.k8s.io" && (c.ver == "v2" || c.ver == "v2beta1"):
			f.Version = c.ver
			c.as, c.group, c.ver = "", "", ""
		default:
			continue
		}
		whole, _, fits := c.format(Object)
		if !fits {
			continue
		}
		f.Encoding, f.Pretty = whole.Encoding, whole.Pretty
		if !ok || c.q > quality {
			best, quality, ok = f, c.q, true
		}
	}
	return best, ok
}

// Media chooses among media types: the index of the offer that an Accept header
// likes best, the first one where it says nothing.
func Media(header string, offers ...string) (index int, ok bool) {
	if header == "" {
		return 0, true
	}
	var (
		quality float64
		wild    bool
	)
	for header != "" {
		var c clause
		c, header = nextClause(header)
		if c.q == 0 {
			continue
		}
		for i, offer := range offers {
			kind, _, _ := strings.Cut(offer, "/")
			w := c.media == "*/*" || c.media == kind+"/*"
			if c.media != offer && !w {
				continue
			}
			if !ok || c.q > quality || c.q == quality && wild && !w {
				index, quality, wild, ok = i, c.q, w, true
			}
			break
		}
	}
	return index, ok
}
