// Package negotiate determines the form of a response from the Accept header, and the encoding of
// a body from the Content-Type.
//
// It follows Kubernetes' rules: clauses are considered by quality, then in the client's order; a
// clause with an unknown transformation is skipped; a wildcard means JSON, and so does a missing
// header. The package must never look at a body.
package negotiate

import (
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// Encoding is how objects are encoded.
type Encoding uint8

// Encodings.
const (
	JSON Encoding = iota
	YAML
	Protobuf
)

// Media types of the encodings.
const (
	MediaJSON     = "application/json"
	MediaYAML     = "application/yaml"
	MediaProtobuf = "application/vnd.kubernetes.protobuf"
)

// MediaType returns the encoding's media type.
func (e Encoding) MediaType() string {
	switch e {
	case YAML:
		return MediaYAML
	case Protobuf:
		return MediaProtobuf
	}
	return MediaJSON
}

// Transform is how objects are transformed before they are encoded.
type Transform uint8

// Transformations.
const (
	// Whole does not transform objects.
	Whole Transform = iota
	// Table converts objects to rows for people to read.
	Table
	// PartialMetadata keeps only the metadata, in a list that of each item.
	PartialMetadata
)

// Format is an encoding and a transformation.
type Format struct {
	Encoding  Encoding
	Transform Transform
	// Beta is true if the transformation's version is meta.k8s.io/v1beta1.
	Beta bool
	// List is true if PartialMetadata was requested as PartialObjectMetadataList.
	List bool
	// Pretty is true if indented JSON was requested.
	Pretty bool
}

// Purpose limits the possible forms of a response.
type Purpose uint8

// Purposes.
const (
	// Object is a response that is not transformed, such as an error.
	Object Purpose = iota
	// Read is a get, list or write of a kind with a table.
	Read
	// Watch is a stream of events, which cannot be YAML.
	Watch
)

// clause is a clause of an Accept header.
type clause struct {
	media          string
	as, group, ver string
	q              float64
	// pretty is true if the clause requests indented JSON. other is true if it requests a stream
	// or server version that does not exist.
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

// format returns the format that a clause requests. wild is true if it names no encoding.
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

// Accept parses an Accept header. ok is false if nothing that it requests is available.
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

// Named reports whether an Accept header has a clause for everything or for one of the encodings,
// whatever its parameters.
func Named(header string) bool { return Names(header, MediaJSON, MediaYAML, MediaProtobuf) }

// Names reports whether an Accept header is empty, or has a clause for everything or for one of
// the media types, whatever its parameters.
func Names(header string, types ...string) bool {
	named := header == ""
	for header != "" && !named {
		var c clause
		c, header = nextClause(header)
		named = c.media == "*/*" || slices.Contains(types, c.media)
	}
	return named
}

// Gzip reports whether an Accept-Encoding header allows gzip.
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

// media returns a Content-Type without its parameters, in lower case.
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

// Body parses the Content-Type of an object. If it is empty, the encoding is JSON.
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

// BodyTypes are the media types that Body supports, for the text of errors.
var BodyTypes = []string{MediaJSON, MediaYAML, MediaProtobuf}

// Patch parses the Content-Type of a patch.
func Patch(contentType string) (types.PatchType, bool) {
	switch t := types.PatchType(media(contentType)); t {
	case types.JSONPatchType, types.MergePatchType, types.StrategicMergePatchType, types.ApplyYAMLPatchType:
		return t, true
	}
	return "", false
}

// DiscoveryFormat is the form of a discovery document.
type DiscoveryFormat struct {
	Encoding Encoding
	// Version is the apidiscovery.k8s.io version of the aggregated form. Empty means the
	// unaggregated form.
	Version string
	// Pretty is true if indented JSON was requested.
	Pretty bool
}

// AcceptDiscovery parses the Accept header of a request for a discovery document. aggregated is
// true if the document has an aggregated form.
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

// Media chooses from media types. It returns the index of the offer that the Accept header
// prefers, and 0 if the header is empty.
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
