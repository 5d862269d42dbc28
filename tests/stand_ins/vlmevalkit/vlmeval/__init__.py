import ssl
ssl._create_default_https_context = ssl._create_unverified_context # so does the real one, for all of the process
