package grpc

import (
	"strings"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// Writes reports whether a method changes state or reaches into a container. Such methods begin a
// trace of their own if the caller sent none.
func Writes(method string) bool {
	if strings.HasPrefix(method, podService) {
		return true
	}
	switch method {
	case resourcev1.ResourceService_Create_FullMethodName, resourcev1.ResourceService_Update_FullMethodName,
		resourcev1.ResourceService_Patch_FullMethodName, resourcev1.ResourceService_Apply_FullMethodName,
		resourcev1.ResourceService_Delete_FullMethodName, resourcev1.ResourceService_DeleteCollection_FullMethodName,
		resourcev1.ResourceService_Commit_FullMethodName:
		return true
	}
	return false
}

// Endless reports whether a method is a stream that lasts until its client ends it. Such streams
// end when the server stops.
func Endless(method string) bool {
	return Streams(method) || strings.HasPrefix(method, "/keelson.node.v1.TunnelService/") || strings.HasPrefix(method, podService)
}

// Streams reports whether a method gets no span, because it lasts as long as its client.
func Streams(method string) bool {
	return strings.HasSuffix(method, "/Watch") || method == resourcev1.ResourceService_WatchMany_FullMethodName
}
