package raft

// children are what this test binary does when it is started as a child.
var children = map[string]func(){}
