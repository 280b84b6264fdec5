package command

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// failing is a connection on which every call fails.
type failing struct {
	grpc.ClientConnInterface
	err error
}

func (f failing) Invoke(context.Context, string, any, any, ...grpc.CallOption) error { return f.err }

// The members of a single apiserver, which has no MemberService, are explained instead of shown
// as an unknown method.
func TestMembersOfASingleApiserver(t *testing.T) {
	var out bytes.Buffer
	e := &env{out: &out}
	if err := e.printMembers(t.Context(), failing{err: status.Error(codes.Unimplemented, "unknown method List")}); !errors.Is(err, errSingle) {
		t.Errorf("%v", err)
	}
	if err := e.printMembers(t.Context(), failing{err: status.Error(codes.PermissionDenied, "no")}); err == nil || err.Error() != "no" {
		t.Errorf("%v", err)
	}
}
