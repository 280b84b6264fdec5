package apistatus

import (
	"encoding/base64"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Domain is the domain of the google.rpc.ErrorInfo in failed calls.
const Domain = "keelson.dev"

// An error travels in headers, twice: as grpc-message, percent-encoded, and as
// grpc-status-details-bin, in base64. Many clients refuse headers of more than 8 KiB together,
// gRPC's C core among them. An error that does not fit is shortened: first what is said twice goes,
// then texts are cut, and at last causes are dropped.
const (
	// maxErrorBytes is the size of both headers' values, which leaves room for the other headers.
	maxErrorBytes = 7 << 10
	// cutMessage, cutText and cutName are the lengths in bytes to which the message of the gRPC
	// status, the message of the Status, and names are cut.
	cutMessage, cutText, cutName = 512, 1024, 253
)

// encode returns the gRPC status of s. Its first detail is s itself.
func encode(s *metav1.Status) (*spb.Status, error) {
	text := func(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
	whole := *s
	whole.Message = text(s.Message)
	st, err := build(&whole, whole.Message, true)
	if err != nil || size(st) <= maxErrorBytes {
		return st, err
	}
	message := cut(whole.Message, cutMessage)
	if st, err = build(&whole, message, false); err != nil || size(st) <= maxErrorBytes {
		return st, err
	}
	whole.Message = cut(whole.Message, cutText)
	if st, err = build(&whole, message, false); err != nil || size(st) <= maxErrorBytes {
		return st, err
	}
	whole.Reason = metav1.StatusReason(cut(text(string(whole.Reason)), cutName))
	whole.ListMeta = metav1.ListMeta{}
	if whole.Details == nil {
		return build(&whole, message, false)
	}
	details := *whole.Details
	whole.Details = &details
	details.Name, details.Group, details.Kind = cut(text(details.Name), cutName), cut(text(details.Group), cutName), cut(text(details.Kind), cutName)
	details.UID = types.UID(cut(text(string(details.UID)), cutName))
	for {
		if st, err = build(&whole, message, false); err != nil || size(st) <= maxErrorBytes || len(details.Causes) == 0 {
			return st, err
		}
		details.Causes = details.Causes[:len(details.Causes)/2]
	}
}

// build returns a gRPC status with all details of s that it has, with or without the BadRequest,
// which repeats the causes.
func build(s *metav1.Status, message string, violations bool) (*spb.Status, error) {
	data, err := s.Marshal()
	if err != nil {
		return nil, err
	}
	st := &spb.Status{Code: int32(codeOf(s)), Message: message, Details: []*anypb.Any{{TypeUrl: typeURL, Value: data}}}
	more := []proto.Message{&errdetails.ErrorInfo{Reason: string(s.Reason), Domain: Domain, Metadata: metadata(s.Details)}}
	if v := fieldViolations(s.Details); violations && len(v) > 0 {
		more = append(more, &errdetails.BadRequest{FieldViolations: v})
	}
	if s.Details != nil && s.Details.RetryAfterSeconds > 0 {
		more = append(more, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Duration(s.Details.RetryAfterSeconds) * time.Second)})
	}
	for _, m := range more {
		a, err := anypb.New(m)
		if err != nil {
			continue // text that is not UTF-8; the Status has it
		}
		st.Details = append(st.Details, a)
	}
	return st, nil
}

// metadata names the object of an error.
func metadata(d *metav1.StatusDetails) map[string]string {
	if d == nil {
		return nil
	}
	m := map[string]string{}
	for key, value := range map[string]string{"group": d.Group, "kind": d.Kind, "name": d.Name} {
		if value != "" {
			m[key] = value
		}
	}
	return m
}

// fieldViolations returns the causes that name a field.
func fieldViolations(d *metav1.StatusDetails) []*errdetails.BadRequest_FieldViolation {
	if d == nil {
		return nil
	}
	var list []*errdetails.BadRequest_FieldViolation
	for _, c := range d.Causes {
		if c.Field != "" {
			list = append(list, &errdetails.BadRequest_FieldViolation{Field: c.Field, Description: c.Message, Reason: string(c.Type)})
		}
	}
	return list
}

// size returns the bytes of a status in headers.
func size(st *spb.Status) int {
	n := base64.StdEncoding.EncodedLen(proto.Size(st))
	for i := range len(st.GetMessage()) {
		if c := st.GetMessage()[i]; c < ' ' || c > '~' || c == '%' {
			n += 2
		}
		n++
	}
	return n
}

// cut shortens a text to at most n bytes, whole characters, and says so.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	n -= len("…")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
