package client

// Bucket lets the conformance table name where keys fall.
var Bucket = bucket
