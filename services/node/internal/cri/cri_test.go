package cri

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMessage(t *testing.T) {
	noisy := status.Error(codes.Unknown, "failed to pull: rpc error: code = NotFound desc = no such image")
	for _, c := range []struct {
		err  error
		want string
	}{
		{noisy, "failed to pull: no such image"},
		{fmt.Errorf("stop sandbox: %w", noisy), "stop sandbox: failed to pull: no such image"},
		{status.Error(codes.Code(99), "odd"), "odd"},
		{errors.New("plain"), "plain"},
		{status.Error(codes.Unknown, "a\x1b[31mb"), `a\x1b[31mb`},
	} {
		if got := Message(c.err); got != c.want {
			t.Errorf("Message(%v) = %q, want %q", c.err, got, c.want)
		}
	}
	if got := Message(errors.New(strings.Repeat("x", 1<<20))); len(got) > maxErrorText {
		t.Errorf("%d bytes", len(got))
	}
}
