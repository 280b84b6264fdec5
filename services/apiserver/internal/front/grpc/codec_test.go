package grpc

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

func TestCommitsAreCountedBeforeTheyAreDecoded(t *testing.T) {
	for n, want := range map[int]codes.Code{maxWrites: codes.OK, maxWrites + 1: codes.InvalidArgument} {
		data := bytes.Repeat([]byte{byte(commitWrites)<<3 | 2, 0}, n)
		got := &resourcev1.CommitRequest{}
		if err := NewCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, got); status.Code(err) != want {
			t.Errorf("%d writes: %v, want %s", n, err, want)
		}
		if want != codes.OK && proto.Size(got) > 0 {
			t.Errorf("%d writes were decoded", len(got.GetWrites()))
		}
	}
}
