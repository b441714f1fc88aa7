"""Who does what, when several processes or machines work into one directory?"""
