package server

func runChild(string) {}
